"""Running `lrtrain` in this process: quickstart at toy size, and what it says when it refuses."""

import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest

import toy
from lrtrain.cli.main import COMMANDS, main

RECIPE = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
PREFIX = "lrtrain: error: "
PROGRESS = (
    *(f"{command}: " for command in COMMANDS),
    "Preparing",
    "Tokenizing",
    "Training a tokenizer",
    "continuing from",
    "opening the storage",
    "passed over",
)


def arguments(shards: Path | str, runs: Path, *more: str, steps: int = 2, recipe: Path = RECIPE) -> list[str]:
    """Of `fit` or `validate`: a recipe at toy size and further flags; `--trainer.logger=true` turns tracking on."""
    return ["--config", str(recipe), *toy.flags(shards, runs, steps), "--trainer.logger=false", *more]


def refusal(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a command that must be refused with exit code 2, and returns the one line that says why."""
    capsys.readouterr()
    code = main(argv)
    last, *others = reversed(capsys.readouterr().err.splitlines())
    assert code == 2
    assert last.startswith(PREFIX)
    assert not [line for line in others if line.strip() and not line.startswith(PROGRESS)]
    return last.removeprefix(PREFIX)


class StopIn(L.Callback):
    """Signals its process at the nth call of a hook, not counting those of the sanity check."""

    def __init__(self, hook: str, count: int = 1, signal: int = signal.SIGTERM) -> None:
        self.left, self.signal = count, signal
        setattr(self, hook, self._act)

    def _act(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self.left -= not trainer.sanity_checking
        if self.left == 0:
            self.left = -1
            os.kill(os.getpid(), self.signal)


class StopAt(L.Callback):
    """Ends a run at the start of a micro-batch, counted from 0: `--trainer.callbacks=commandline.StopAt`.

    With `crash` by an exception, so that nothing of the running step is done; else by SIGTERM, after that step.
    """

    def __init__(self, batch: int, crash: bool = False) -> None:
        self.batch = batch
        self.crash = crash

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, index: int) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            if self.crash:
                raise RuntimeError("the test's crash")
            os.kill(os.getpid(), signal.SIGTERM)
