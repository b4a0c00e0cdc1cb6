"""Something happens once, at one moment of a run: a signal, an exception."""

import os
import signal
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


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fail() -> None:
    raise RuntimeError("struck")
