"""Signals at random moments to two processes that train: never a deadlock, and the run ends as if none had come."""

import contextlib
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import toy
from checkpoint_state import differences
from commandline import RECIPE, arguments
from forked import FORK
from lrtrain.checkpoint import shard_folder, single_file
from lrtrain.checkpoint.directory import steps_in
from lrtrain.checkpoint.signals import WARNINGS
from lrtrain.cli.main import main
from ranks import torchrun_environment
from run_record import points, statuses

STEPS, SIGNALS = 160, 20
PATIENCE = 120.0  # seconds after which processes that have not left are taken to wait for each other
SENT = [signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP]


class Pair:
    """Two processes of a group that run one command after another, as often as they are told to."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        self.processes, self.pipes = [], []
        for environment in torchrun_environment(2):
            here, there = FORK.Pipe()
            process = FORK.Process(target=_serve, args=(there, environment, self.log), daemon=True)
            process.start()
            self.processes.append(process)
            self.pipes.append(here)

    def start(self, argv: list[str]) -> None:
        for pipe in self.pipes:
            pipe.send(argv)

    def running(self) -> bool:
        return not any(pipe.poll() for pipe in self.pipes)

    def codes(self, seconds: float) -> list[int | None]:
        """Exit codes of the command, or of the process where that ended; None of one that has not left it after some
        seconds."""
        deadline = time.monotonic() + seconds
        found: list[int | None] = []
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            answers = pipe.poll(max(0.0, deadline - time.monotonic()))
            try:
                found.append(pipe.recv() if answers else None)
            except EOFError:
                process.join()
                found.append(process.exitcode)
        return found

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _serve(pipe: Any, environment: dict[str, str], log: Path) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.pop("PL_GLOBAL_SEED", None)
    os.environ.update(environment)
    while True:
        argv = pipe.recv()
        for received in (*WARNINGS, signal.SIGTERM):
            signal.signal(received, signal.SIG_DFL)
        try:
            code = main(argv)
        except SystemExit as ended:
            code = int(ended.code or 0)
        for received in (*WARNINGS, signal.SIGTERM):
            signal.signal(received, signal.SIG_IGN)
        pipe.send(code)


def begun(run: Path) -> int:
    """How often a run has begun to train."""
    return statuses(run).count("RUNNING") if (run / "metrics.jsonl").exists() else 0


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_no_signal_deadlocks_two_processes_or_changes_what_they_compute(strategy: str, tmp_path: Path) -> None:
    more = ["--config", str(RECIPE.parent / f"parallel/{strategy}.yaml"), "--checkpoints.every_n_steps=20"]
    more += ["--trainer.val_check_interval=13", "--trainer.accumulate_grad_batches=2", "--name=x", "--ckpt_path=last"]

    def argv(runs: str) -> list[str]:
        return ["fit", *arguments(tmp_path / "shards", tmp_path / runs, *more, steps=STEPS)]

    toy.shards(tmp_path)
    finish(argv("whole"), tmp_path)
    draw, sent, campaign, whole = random.Random(0), Counter[str](), 0, tmp_path / "whole/x/0001"
    while sent.total() < SIGNALS:
        campaign += 1
        run, again = tmp_path / f"struck-{campaign}/x/0001", argv(f"struck-{campaign}")
        while max(steps_in(run / "checkpoints"), default=0) < STEPS and sent.total() < SIGNALS:
            with contextlib.closing(Pair(tmp_path)) as pair:
                strike(pair, again, run, draw, sent)
        finish(again, tmp_path)
        assert points(run) == points(whole)
        assert changes(run, whole, strategy) == []
    print(f"{strategy}: {sent.total()} signals in {campaign} runs, no deadlock: {dict(sent)}")
    assert "Traceback" not in (tmp_path / "log").read_text()


def finish(argv: list[str], folder: Path) -> None:
    with contextlib.closing(Pair(folder)) as pair:
        pair.start(argv)
        assert pair.codes(900) == [0, 0], pair.log.read_text()


def strike(pair: Pair, argv: list[str], run: Path, draw: random.Random, sent: Counter[str]) -> None:
    """Lets a run go on, signals one or both of its processes at a random moment, and waits until they have left."""
    before = begun(run)
    pair.start(argv)
    deadline = time.monotonic() + 300
    while begun(run) == before:
        assert pair.running()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(draw.uniform(0, 1.5))
    how = draw.choice(SENT)
    for process in draw.choice([pair.processes, pair.processes, pair.processes[:1], pair.processes[1:]]):
        if pair.running():
            os.kill(process.pid, how)
    codes = pair.codes(PATIENCE)
    assert None not in codes, f"deadlock after {how.name}, saved {list(steps_in(run / 'checkpoints'))}"
    if {*codes} & {0, -how}:  # it was over: only the summary was to come, in which a signal ends a process
        assert max(steps_in(run / "checkpoints")) == STEPS, f"{codes}: {pair.log.read_text()}"
        assert {*codes} <= {0, -how}, pair.log.read_text()
    else:
        assert codes == [128 + how] * 2, pair.log.read_text()
        sent[how.name] += 1


def changes(run: Path, whole: Path, strategy: str) -> list[str]:
    """Where the last checkpoints of two runs are not the same bit for bit, in what training depends on."""
    read = shard_folder.read if strategy == "fsdp" else single_file.read_whole
    one, other = (read(path / f"checkpoints/step-{STEPS:08d}.ckpt") for path in (run, whole))
    keys = ("state_dict", "optimizer_states", "lr_schedulers")
    found = [where for key in keys for where in differences(one[key], other[key], key)]
    loops = [each["loops"]["fit_loop"]["state_dict"] for each in (one, other)]
    rng = [each["lrtrain"]["rng"] for each in (one, other)]
    return [*found, *differences(*loops, "fit_loop"), *differences(*rng, "rng")]
