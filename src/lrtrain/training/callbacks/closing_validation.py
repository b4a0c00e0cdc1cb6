"""The validation with which a run ends."""

import lightning as L
from torch import Tensor

from lrtrain.checkpoint.boundary import validate_at_boundary


class ClosingValidation(L.Callback):
    """Validates the last weights at the end of fit, unless the validation of the last step just did.

    Name it before a callback whose last record tells of validations too (`Throughput`); `lrtrain fit` does.

    Attributes:
        step: Optimizer steps that were done at the last validation; None before there was one.
        first_batch: Of the held-out data (B, T + 1); None before there was a validation.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self.first_batch: Tensor | None = None

    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Tensor,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.first_batch is None and isinstance(batch, Tensor) and len(batch):
            self.first_batch = batch.detach()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.step = trainer.global_step

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.step == trainer.global_step:
            return
        for callback in trainer.checkpoint_callbacks:
            callback.on_train_end(trainer, pl_module)  # whoever is killed in this validation has the last weights
        validate_at_boundary(trainer)
