"""What Lightning says of every run, and nobody could act on: left out."""

import logging
import warnings

IDLE = (
    ".*does not have many workers.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*IterableDataset. has `__len__` defined.*",
    ".*`srun` command is available on your system but is not used.*",
)
"""Patterns of such warnings."""


def ignore_idle_warnings() -> None:
    for pattern in IDLE:
        warnings.filterwarnings("ignore", message=pattern)


def quiet() -> None:
    """For a notebook: leaves out these warnings and Lightning's notes on devices and tips; call it after its import."""
    ignore_idle_warnings()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
