"""A step boundary: its state, apart from weights and optimizer, and a validation there."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl


@dataclass(frozen=True)
class Boundary:
    """What changes between a step boundary and the next update, as it was at the boundary.

    `callbacks` is None where the save can only come before another micro-batch is done: what they hold then is as good.
    """

    step: int
    epoch: int
    fit_loop: dict[str, Any]
    datamodule: dict[str, Any]
    random: dict[str, Any]
    callbacks: dict[str, Any] | None

    @classmethod
    def of(cls, trainer: pl.Trainer, random: dict[str, Any], with_callbacks: bool) -> "Boundary":
        """The boundary at which the Trainer is, in `on_train_batch_end`."""
        datamodule = getattr(trainer, "datamodule", None)
        state = copy.deepcopy(datamodule.state_dict()) if datamodule is not None else {}
        fit_loop = trainer.fit_loop.state_dict()
        fit_loop["state_dict"] = copy.deepcopy(fit_loop["state_dict"])  # the loaders', which may live on
        return cls(
            step=trainer.global_step,
            epoch=trainer.current_epoch,
            fit_loop=fit_loop,
            datamodule={type(datamodule).__qualname__: state} if state else {},
            random=random,
            callbacks=_states(trainer) if with_callbacks else None,
        )

    def after_validation(self, trainer: pl.Trainer) -> "Boundary":
        """The boundary with what the callbacks took from the validation that ran there."""
        return self if self.callbacks is None else replace(self, callbacks=_states(trainer))

    def put_into(self, checkpoint: dict[str, Any]) -> None:
        """Replaces what the checkpoint of a later moment holds of these."""
        checkpoint.update(epoch=self.epoch, **self.datamodule)
        checkpoint["loops"]["fit_loop"] = self.fit_loop
        if self.callbacks is not None:
            checkpoint["callbacks"] = self.callbacks


def validate_at_boundary(trainer: pl.Trainer) -> None:
    """Runs the whole validation where the loop itself does not: before the first batch, or after the last."""
    if not trainer.enable_validation:
        return
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False  # from its own first batch on
    trainer.validating = True
    loop.run()
    trainer.training = True


def _states(trainer: pl.Trainer) -> dict[str, Any]:
    """The callbacks' states, as Lightning puts them into a checkpoint."""
    states = {callback.state_key: callback.state_dict() for callback in trainer.callbacks}  # type: ignore[attr-defined]
    return copy.deepcopy({key: state for key, state in states.items() if state})
