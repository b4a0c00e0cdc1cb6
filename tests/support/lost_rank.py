"""A process of several that goes away in the middle of a run."""

import os
import signal
from typing import Any

import lightning as L

WAYS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}


class LostRank(L.Callback):
    """Kills, stops or fails one process in the middle of a step: `--trainer.callbacks=lost_rank.LostRank`."""

    def __init__(self, way: str, rank: int = 1, batch: int = 7) -> None:
        self.way, self.rank, self.batch = way, rank, batch

    def on_before_backward(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_rank == self.rank and trainer.fit_loop.total_batch_idx == self.batch:
            if self.way == "failed":
                raise RuntimeError("the test's crash")
            os.kill(os.getpid(), WAYS[self.way])


class FailAloneInEvaluation(L.Callback):
    """Lets the scores of a batch fail on one process, in the second evaluation of a run."""

    def __init__(self, calls: int, rank: int = 1) -> None:
        self.calls, self.rank = calls, rank

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        from lrtrain.studies.evaluation import decoder_lm

        score = decoder_lm.score

        def failing(*arguments: Any) -> Any:
            self.calls -= 1
            if self.calls < 0:
                raise RuntimeError("the test's out of memory")
            return score(*arguments)

        if trainer.global_rank == self.rank:
            decoder_lm.score = failing
