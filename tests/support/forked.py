"""Processes that start in a moment: forked from a server that has imported the libraries, once for all tests."""

import multiprocessing

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["lrtrain.checkpoint.checkpoints", "lrtrain.config.train_parser"])
