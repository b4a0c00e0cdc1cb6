"""The ways in which a run ends, on one of its processes, and the exit code of each."""

import os
import signal
import time
from typing import Any

import lightning as L

from lrtrain.runtime import first_to_end
from lrtrain.runtime.errors import TemporaryError, UserError

CODES = {"done": 0, "mistake": 2, "outage": 75, "SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 138, "fault": 1}


class EndBy(L.Callback):
    """Ends a run at the start of its third batch on one process: by an error of its own, or a signal that it gets."""

    def __init__(self, how: str, rank: int = 0) -> None:
        self.how, self.rank = how, rank

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step != 2 or trainer.global_rank != self.rank:
            return
        if self.how in signal.Signals.__members__:
            os.kill(os.getpid(), signal.Signals[self.how])
        if self.how == "mistake":
            raise UserError("the disk is full; make room")
        if self.how == "outage":
            raise TemporaryError("the store does not answer")
        if self.how == "fault":
            raise RuntimeError("a fault of the program")


class Hang(L.Callback):
    """Leaves a process where nothing tells it that another one is gone, as in a collective of NCCL."""

    def setup(self, *_: Any, **__: Any) -> None:
        first_to_end.SECONDS_TO_NOTICE = 2.0

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_rank == 0 and trainer.global_step == 2:
            time.sleep(600)


def ended_by(how: str, rank: int = 0, others: str = "") -> list[str]:
    """The flags that end a run so, after another callback if one is named."""
    before = [f"--trainer.callbacks+={others}"] if others else []
    own = "--trainer.callbacks+=endings.EndBy"
    return [*before, own, f"--trainer.callbacks.how={how}", f"--trainer.callbacks.rank={rank}"]
