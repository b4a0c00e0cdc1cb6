"""What a test does when a run has done so many steps: `--trainer.callbacks=step_actions.Acting`."""

from collections.abc import Callable
from typing import Any

import lightning as L

ACTIONS: dict[int, Callable[[], Any]] = {}
"""Optimizer step -> what happens once, when what was logged of it has reached the record."""


class Acting(L.Callback):
    """Does what `ACTIONS` says, on the first process."""

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.is_global_zero and trainer.global_step in ACTIONS:
            ACTIONS.pop(trainer.global_step)()
