"""A run that SIGKILL ends a few times, and goes on each time, ends as one that nothing ever stopped."""

import os
import random
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from commandline import arguments
from forked import FORK
from lrtrain.checkpoint.directory import steps_in
from lrtrain.tracking.recorded import recorded

STEPS = 40
OF_THE_CLOCK = ("throughput/seconds", "throughput/step_seconds", "throughput/validation_seconds")
OF_THE_CLOCK += ("throughput/tokens_per_second", "throughput/mfu", "checkpoint/seconds")


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    shards = toy.shards(tmp_path_factory.mktemp("data"))
    every = ["--checkpoints.every_n_steps=3", "--checkpoints.keep=2", "--trainer.val_check_interval=5"]
    return ["fit", *arguments(shards, Path("runs"), *every, steps=STEPS)]


@pytest.fixture(scope="module")
def whole(fit: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert ended(fit, folder) == 0
    return folder


def test_killed_a_few_times_it_ends_as_the_run_that_nothing_stopped(
    fit: list[str], whole: Path, tmp_path: Path
) -> None:
    draw = random.Random(0)
    steps = [*sorted(draw.choices(range(STEPS), k=3)), STEPS - 1]
    codes = [ended([*fit, *last(tmp_path)], tmp_path, (step, draw.uniform(0, 0.1))) for step in steps]
    assert set(codes) <= {0, -signal.SIGKILL}
    assert codes.count(-signal.SIGKILL) > 1
    assert ended([*fit, *last(tmp_path)], tmp_path) == 0
    run, wanted = max(tmp_path.glob("runs/quickstart/*")), whole / "runs/quickstart/0001"
    same(checkpoint(run), checkpoint(wanted))
    here, there = recorded(run), recorded(wanted)
    assert here is not None
    assert there is not None
    assert here.status == there.status == "FINISHED"
    assert here.metrics.keys() == there.metrics.keys()
    for name in here.metrics.keys() - {*OF_THE_CLOCK}:
        assert here.metrics[name].step.tolist() == there.metrics[name].step.tolist(), name
        assert here.metrics[name].value.tolist() == there.metrics[name].value.tolist(), name


def last(folder: Path) -> list[str]:
    """The flag that goes on with the newest run of a folder, where it has a checkpoint."""
    runs = sorted(folder.glob("runs/quickstart/*/checkpoints"))
    return ["--ckpt_path=last"] if runs and steps_in(runs[-1]) else []


def checkpoint(run: Path) -> Any:
    step, file = next(iter(steps_in(run / "checkpoints").items()))
    assert step == STEPS
    return torch.load(file, weights_only=True)


def same(here: Any, there: Any, at: str = "") -> None:
    """Raises AssertionError unless two trees of tensors and values are equal, but for texts and times."""
    assert type(here) is type(there), at
    if isinstance(here, dict):
        assert here.keys() == there.keys(), at
        for key in here:
            if not any(word in str(key) for word in ("seconds", "time", "val_loop")):
                same(here[key], there[key], f"{at}.{key}")
    elif isinstance(here, list | tuple):
        assert len(here) == len(there), at
        for index, (a, b) in enumerate(zip(here, there, strict=True)):
            same(a, b, f"{at}[{index}]")
    elif isinstance(here, torch.Tensor):
        assert torch.equal(here, there), at
    elif not isinstance(here, str):
        assert here == there, at


def ended(argv: list[str], folder: Path, kill: tuple[int, float] | None = None) -> int | None:
    """The exit code of a command, which is killed so many seconds after it has recorded a step."""
    process = FORK.Process(target=_run, args=(argv, str(folder)))
    process.start()
    while kill is not None and process.is_alive() and kill[0] not in recorded_steps(folder):
        time.sleep(0.002)
    if kill is not None:
        time.sleep(kill[1])
        process.kill()
    process.join(120)
    return process.exitcode


def recorded_steps(folder: Path) -> set[int]:
    """The steps that the newest run of a folder has recorded since it began or was resumed."""
    files = sorted(folder.glob("runs/quickstart/*/metrics.jsonl"))
    return {step for file in files[-1:] for step in map(int, re.findall(r'"step": (\d+)', file.read_text()))}


def _run(argv: list[str], folder: str) -> None:
    from lrtrain.cli.main import main

    torch.set_num_threads(1)
    os.chdir(folder)
    with open("output", "a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.exit(main(argv))
