"""A campaign of random kills: whatever moment a process was killed at, the run's record ends as if it had not been."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

import toy
from checkpoint_state import assert_same_state
from commandline import RECIPE, arguments
from forked import FORK
from lrtrain.checkpoint.directory import newest_whole
from lrtrain.cli.main import main
from run_record import points, statuses

STEPS, KILLS = 8, 10
SCT = RECIPE.with_name("sct_S.yaml")


def flags(shards: Path, runs: Path, recipe: Path) -> list[str]:
    """Checkpoints every second step, validations every third micro-batch, two micro-batches a step."""
    more = ["--trainer.logger=true", "--name=x", "--checkpoints.every_n_steps=2", "--checkpoints.keep=-1"]
    more += ["--trainer.val_check_interval=3", "--trainer.accumulate_grad_batches=2"]
    return ["fit", *arguments(shards, runs, *more, steps=STEPS, recipe=recipe)]


def attempt(argv: list[str], seconds: float | None, how: signal.Signals) -> bool:
    """Runs a command in a process of its own, killed after some seconds; says whether it came to its end."""
    process = FORK.Process(target=_run, args=(argv,))
    process.start()
    if seconds is not None:
        process.join(seconds)
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, how)
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)
    return process.exitcode == 0


def _run(argv: list[str]) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        code = main(argv)
    except SystemExit as ended:
        code = int(ended.code or 0)
    os._exit(code)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("recipe", [RECIPE, SCT], ids=["spectron", "sct"])
def test_a_run_that_is_killed_at_random_moments_ends_as_one_that_never_was(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    shards = toy.shards(tmp_path)
    began = time.monotonic()
    assert attempt(flags(shards, tmp_path / "whole", recipe), None, signal.SIGKILL)
    duration, whole = time.monotonic() - began, tmp_path / "whole/x/0001"
    last = f"checkpoints/step-{STEPS:08d}.ckpt"
    draw, killed, campaign = random.Random(0), 0, 0
    while killed < KILLS:
        campaign += 1
        runs = tmp_path / f"killed-{campaign}"
        argv = [*flags(shards, runs, recipe), "--ckpt_path=last"]
        for _ in range(3):
            how = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
            if attempt(argv, draw.uniform(0, 0.7 * duration), how):
                break
            killed += 1
        else:
            assert attempt(argv, None, signal.SIGKILL)
        (run,) = [path for path in (runs / "x").iterdir() if newest_whole(path / "checkpoints")[0] is not None]
        assert points(run) == points(whole), campaign
        assert statuses(run)[-1] == "FINISHED", campaign
        assert_same_state(run / last, whole / last)
