"""A step whose gradient holds an infinity or a NaN is skipped; too many in a row end the run."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lrtrain.linalg import local
from lrtrain.optim import CombinedOptimizer
from lrtrain.runtime.errors import UserError


class NonFiniteGradients(L.Callback):
    """Skips every optimizer step whose gradient is not finite, and ends the run after too many in a row.

    A skipped step leaves weights, optimizer state and constraints as they are, bit for bit. It counts as a step: the
    data, the learning-rate schedule and `trainer.global_step` go on. The first of a row is told in a line, and
    `train/skipped_steps`, how many there were in all, is logged at each.

    When `stop_after` have been skipped in a row, a checkpoint is saved, which has the weights of the last good step
    and the place in the data after the last skipped one, and UserError is raised. With a loss scaler (`16-mixed`) an
    overflow is how the scale is found, so a step counts towards the end only when the scale has come down to 1.

    Name it before every callback that acts on gradients in `on_before_optimizer_step`; `lrtrain fit` does. A step
    costs the norms of the gradients, one number all-reduced and one read from the device; all processes decide alike.

    Args:
        stop_after: skipped steps in a row that end the run; null never ends it.

    Raises:
        UserError: `stop_after` is out of range, or the model's optimizer is not a `CombinedOptimizer`.
    """

    def __init__(self, stop_after: int | None = 10) -> None:
        if stop_after is not None and stop_after < 1:
            raise UserError(f"nonfinite.stop_after is {stop_after}: it counts skipped steps, at least 1, or null")
        self.stop_after = stop_after
        self.skipped = 0
        self._in_a_row = self._counted = 0
        self._skipping = False
        self._began = ""
        self._stop: UserError | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not all(isinstance(optimizer, CombinedOptimizer) for optimizer in trainer.optimizers):
            raise UserError("trainer.callbacks: NonFiniteGradients needs the optimizer to be a CombinedOptimizer")
        self._in_a_row = self._counted = 0
        self._skipping, self._stop = False, None

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        assert isinstance(optimizer, CombinedOptimizer)
        gradients = {name: local(p.grad) for name, p in pl_module.named_parameters() if p.grad is not None}
        bad = _non_finite(gradients, trainer.strategy)
        self._skipping = optimizer.skip_step = bool(bad)
        if not bad:
            self._in_a_row = self._counted = 0
            return
        self.skipped += 1
        self._in_a_row += 1
        scale = _loss_scale(trainer)
        self._counted += scale <= 1
        step = trainer.global_step + 1
        if self._in_a_row == 1:
            # Backward comes first to what stands nearest the model's output.
            others = f" and {len(bad) - 1} of the other {len(gradients) - 1} parameters" if bad[1:] else ""
            self._began = f"from step {step} on, first in {bad[-1]}{others}"
            scaler = f"; the loss scale {scale:g} is lowered" if scale > 1 else ""
            rank_zero_warn(f"step {step} is skipped: non-finite gradient in {bad[-1]}{others}{scaler}")
        if self._counted == self.stop_after:
            self._stop = UserError(
                f"stopped at step {step}: non-finite gradients in {self._in_a_row} steps in a row, {self._began}; "
                "the last good weights are saved: lower the learning rate (model.optimizers) or look at the data, and "
                "go on with --ckpt_path last"
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._skipping:
            self._skipping = False
            # Straight to the loggers: Lightning would pass on only what falls on its own log interval.
            for logger in trainer.loggers:
                logger.log_metrics({"train/skipped_steps": float(self.skipped)}, step=trainer.global_step)

    # The first moments after the step's own metrics are logged, whichever comes.
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._stop is not None:
            stop, self._stop = self._stop, None
            for callback in trainer.checkpoint_callbacks:
                callback.on_train_end(trainer, pl_module)  # while all processes are here to save their shards
            raise stop

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for callback in trainer.checkpoint_callbacks if self._stop is not None else ():
            callback.on_validation_start(trainer, pl_module)  # to note that this validation is due
        self.on_train_end(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]


def _non_finite(gradients: dict[str, Tensor], strategy: Strategy) -> list[str]:
    """Names of the gradients that hold an infinity or a NaN in any process, the same on all, in the model's order.

    Norms answer it at the cost of reading: one that is finite vouches for every number. One that is not may only have
    overflowed, so then the numbers themselves are looked at.
    """
    held = [gradient for gradient in gradients.values() if gradient.numel()]
    norms = [norm.float() for norm in torch._foreach_norm(held)] if held else []
    suspect = (~torch.stack([torch.zeros((), device=strategy.root_device), *norms]).isfinite().all()).float()
    if not bool(strategy.reduce(suspect, reduce_op="sum")):
        return []
    flags = torch.stack([(~gradient.isfinite()).any() for gradient in gradients.values()]).float()
    found: Any = strategy.reduce(flags, reduce_op="sum")
    return [name for name, flag in zip(gradients, found.tolist(), strict=True) if flag]


def _loss_scale(trainer: L.Trainer) -> float:
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())
