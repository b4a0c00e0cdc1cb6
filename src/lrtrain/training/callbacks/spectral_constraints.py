"""The constraints inside a Lightning training step."""

from typing import Any

import lightning as L
from torch import Tensor
from torch.optim import Optimizer

from lrtrain.constraints import (
    BalancedRenormalization,
    Constraint,
    FunctionPreservingRetraction,
    SpectralRenormalization,
    StiefelRetraction,
    TangentProjection,
    column_scaled,
    spectral_triples,
    structure,
    takes_step_scale,
)
from lrtrain.runtime.errors import UserError


class SpectralConstraints(L.Callback):
    """Spectral renormalization before, QR retraction right after the update, in the same optimizer step.

    `on_before_optimizer_step` runs inside the optimizer's closure, when the (accumulated, unscaled) gradients are there
    and before clipping. It calls `before_step` and arms `after_step`, which the optimizer's own post-hook then runs as
    the last act of that step: no scheduler, checkpoint, log or validation ever sees weights off the manifold.

    The model's projections say what there is to constrain (`factor_pairs`, `orthonormal`, `spectral_triples`).
    `CausalLM` attaches this callback by itself; name it under `trainer.callbacks` to change it.

    Args:
        renormalize: Scale the steps of the pairs (A, B); null means wherever the optimizer takes step scales.
        retract: Put the orthonormal parameters back on the manifold after each step.
        preserve_function: Retract by the singular value decomposition of W = V diag(s) Uᵀ, which leaves W as it is,
            instead of QR, which changes it.
        project_gradients: Project the gradients of the orthonormal parameters to the tangent space, before clipping.
        transport_momentum: Carry the optimizer's first moments to the new tangent space after each retraction.
        bound_updates: Scale the steps of U and V by s, so that the learning rate bounds ‖ΔW‖₂ as Spectron's does.
    """

    def __init__(
        self,
        renormalize: bool | None = None,
        retract: bool = True,
        preserve_function: bool = False,
        project_gradients: bool = False,
        transport_momentum: bool = False,
        bound_updates: bool = False,
    ) -> None:
        if not retract and (preserve_function or transport_momentum):
            raise UserError(
                "trainer.callbacks: SpectralConstraints has retract: false, so there is no retraction that "
                "preserve_function or transport_momentum could change: leave them out or retract"
            )
        self.renormalize = renormalize
        self.retract = retract
        self.preserve_function = preserve_function
        self.project_gradients = project_gradients
        self.transport_momentum = transport_momentum
        self.bound_updates = bound_updates
        self.constraints: dict[str, Constraint] = {}
        self._pairs: dict[str, tuple[Tensor, Tensor]] = {}
        self._orthonormal: dict[str, Tensor] = {}
        self._armed = False
        self._restored: dict[str, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._pairs, self._orthonormal = structure(pl_module)
        optimizer = trainer.optimizers[0]
        self.constraints = {}
        scaled = _scaled_parameters(optimizer)
        held = {name: sum(factor in scaled for factor in pair) for name, pair in self._pairs.items()}
        scalable = {name: pair for name, pair in self._pairs.items() if held[name] == 2}
        for name, count in held.items():
            if count == 1:
                raise UserError(f"model.optimizers: A and B of {name} need one optimizer; change the overrides")
        if self.renormalize and (not scalable or len(scalable) < len(self._pairs)):
            raise UserError(
                "trainer.callbacks: SpectralConstraints has renormalize: true, but the factors' optimizer takes no "
                "step scales; use lrtrain.optim.Spectron for model.optimizers.hidden or leave renormalize out"
            )
        if scalable and self.renormalize is not False:
            self.constraints["renormalize"] = SpectralRenormalization(scalable)
        self.constraints |= self._on_the_manifold(spectral_triples(pl_module), optimizer)
        for name, state in self._restored.items():
            if name in self.constraints:
                self.constraints[name].load_state_dict(state)
        optimizer.register_step_post_hook(self._after_step)

    def _on_the_manifold(
        self, triples: dict[str, tuple[Tensor, Tensor, Tensor]], optimizer: Optimizer
    ) -> dict[str, Constraint]:
        """The constraints of the orthonormal parameters; with `preserve_function`, QR is for those outside the triples.

        Raises:
            UserError: something is asked of orthonormal parameters or triples, and the model has none.
        """
        names = ("preserve_function", "bound_updates", "project_gradients", "transport_momentum")
        asked = [name for name in names if getattr(self, name)]
        if asked and not (triples if self.preserve_function or self.bound_updates else self._orthonormal):
            raise UserError(
                f"trainer.callbacks: SpectralConstraints has {asked[0]}: true, but the model has no spectral "
                "projection; use lrtrain.nn.SpectralLinear or leave it out"
            )
        scaled = column_scaled(optimizer)
        if self.bound_updates and not all(u in scaled and v in scaled for u, _, v in triples.values()):
            raise UserError(
                "trainer.callbacks: SpectralConstraints has bound_updates: true, but the optimizer of U and V takes no "
                "column scales; use lrtrain.optim.Stiefel for model.optimizers.hidden or leave it out"
            )
        constraints: dict[str, Constraint] = {}
        if self.bound_updates:
            constraints["bound"] = BalancedRenormalization(triples)
        if self._orthonormal and self.project_gradients:
            constraints["project"] = TangentProjection(self._orthonormal)
        alone = self._orthonormal
        if self.retract and self.preserve_function and triples:
            constraints["preserve"] = FunctionPreservingRetraction(triples, self.transport_momentum)
            inside = {parameter for triple in triples.values() for parameter in triple}
            alone = {name: parameter for name, parameter in alone.items() if parameter not in inside}
        if self.retract and alone:
            constraints["retract"] = StiefelRetraction(alone, self.transport_momentum)
        return constraints

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
        for constraint in self.constraints.values():
            constraint.after_step()

    def state_dict(self) -> dict[str, Any]:
        if not self.constraints:
            return self._restored  # saved before training began: pass on what was loaded
        return {name: constraint.state_dict() for name, constraint in self.constraints.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = dict(state_dict)


def _scaled_parameters(optimizer: Optimizer) -> set[Tensor]:
    parts = getattr(optimizer, "optimizers", [optimizer])
    return {p for part in parts if takes_step_scale(part) for group in part.param_groups for p in group["params"]}
