"""The constraints inside a Lightning training step."""

from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.optim import Optimizer

from lrtrain.constraints import Constraint, attached, left_out, uncovered
from lrtrain.optim import UnstatedError
from lrtrain.runtime.errors import UserError


class SpectralConstraints(L.Callback):
    """Runs constraints before and right after the update, in the same optimizer step.

    `on_before_optimizer_step` runs inside the optimizer's closure, when the (accumulated, unscaled) gradients are there
    and before clipping. It calls `before_step` and arms `after_step`, which the optimizer's own post-hook then runs as
    the last act of that step: no scheduler, checkpoint, log or validation ever sees weights off the manifold.

    `CausalLM` attaches this callback by itself; name it under `trainer.callbacks` to choose the constraints.

    Args:
        constraints: All there are, in the order they act in. Null: what the projections need, which is
            `SpectralRenormalization` or `PartnerMetric` of the low-rank ones, as their optimizer takes step scales or
            roots, and `StiefelRetraction` of the spectral ones. An empty list: none. Any other that leaves one out is
            warned of.

    Raises:
        UserError: at the start of training, a constraint of the list has nothing to hold, or it needs something of an
            optimizer that this does not state.
    """

    def __init__(self, constraints: list[Constraint] | None = None) -> None:
        self.constraints: dict[str, Constraint] = {}
        self._asked = constraints
        self._armed = False
        self._restored: dict[str, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        optimizer = trainer.optimizers[0]
        try:
            self.constraints = attached(self._asked, pl_module, optimizer)
        except ValueError as error:
            raise UserError(f"trainer.callbacks: SpectralConstraints, {error}") from error
        for name, state in self._restored.items():
            if name in self.constraints:
                self.constraints[name].load_state_dict(state)
            elif state:
                rank_zero_warn(f"the checkpoint's state of the constraint {name} is left out: the run has no such one")
        for line in uncovered(self._asked, self.constraints, pl_module, optimizer):
            rank_zero_warn(f"SpectralConstraints: {line}")
        optimizer.register_step_post_hook(self._after_step)
        for name in left_out(self._asked, pl_module, optimizer) if self._asked else ():
            rank_zero_warn(
                f"trainer.callbacks: the list of SpectralConstraints leaves out lrtrain.constraints.{name}, which this "
                "model would have by itself; add it, unless that is meant"
            )

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        if getattr(optimizer, "skip_step", False):
            return
        for constraint in self.constraints.values():
            constraint.before_step(optimizer)
        self._armed = True

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # The hook stays registered: removing it here would change the dictionary that the optimizer is iterating over.
        if not self._armed:
            return
        self._armed = False
        for name, constraint in self.constraints.items():
            try:
                constraint.after_step()
            except UnstatedError as error:
                raise UserError(f"trainer.callbacks: SpectralConstraints, {name}: {error}") from error

    def state_dict(self) -> dict[str, Any]:
        if not self.constraints:
            return self._restored  # saved before training began: pass on what was loaded
        return {name: constraint.state_dict() for name, constraint in self.constraints.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = dict(state_dict)
