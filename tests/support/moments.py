"""Something happens once, at one moment of a run: a signal, an exception; or each step takes some time."""

import os
import signal
import time
from typing import Any

import lightning.pytorch as pl


class At(pl.Callback):
    """Does something once, at one moment of a run."""

    def __init__(self, hook: str, count: int, action: Any) -> None:
        self.left, self.action = count, action
        setattr(self, hook, self._act)

    def _act(self, *_: Any, **__: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.action()


class Pause(pl.Callback):
    """Makes each micro-batch so many seconds longer: `--trainer.callbacks=moments.Pause`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        time.sleep(self.seconds)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fail() -> None:
    raise RuntimeError("struck")
