"""What is known of the other processes when one of them stops answering: their hosts, and the last step with all."""

import time
from typing import Any

import lightning as L

from lrtrain.runtime.first_to_end import stop_listening
from lrtrain.runtime.lost_processes import introduce, is_lost, sign


class RollCall(L.Callback):
    """Notes the time of each step, and signs as soon as a collective fails (`runtime.lost_processes`).

    Name it before what may take long on an exception: the others wait a few seconds for a signature.
    """

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._step = 0
        self._failed: float | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        introduce()
        self._begun, self._step, self._failed = time.monotonic(), trainer.global_step, None

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._begun, self._step = time.monotonic(), trainer.global_step

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        stop_listening()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if is_lost(exception):
            self._failed = time.monotonic()
            sign()

    def since(self) -> str:
        """How long after which step a collective failed."""
        seconds = (self._failed or time.monotonic()) - self._begun
        return f"{seconds:.0f} s after step {self._step}"
