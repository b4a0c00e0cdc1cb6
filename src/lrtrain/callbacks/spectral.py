"""The constraints inside a Lightning training step."""

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from lrtrain.constraints import Constraint, SpectralRenormalization, StiefelRetraction, structure, takes_step_scale
from lrtrain.errors import UserError
from lrtrain.linalg import orthonormality_error, product_norm

MEASURED_PAIRS = 8
"""‖ΔW‖₂ is measured on at most this many pairs, spread over the depth."""


class SpectralConstraints(L.Callback):
    """Spectral renormalisation before, QR retraction right after the update, in the same optimizer step.

    `on_before_optimizer_step` runs inside the optimizer's closure, when the (accumulated, unscaled) gradients are there
    and before clipping. It calls `before_step` and arms `after_step`, which the optimizer's own post-hook then runs as
    the last act of that step: no scheduler, checkpoint, log or validation ever sees weights off the manifold.

    The model's projections say what there is to constrain (`factor_pairs`, `orthonormal`). `CausalLM` attaches this
    callback by itself; name it under `trainer.callbacks` to change it.

    Logged every `measure_every_n_steps`: the largest σ(A), σ(B) and ‖ΔW‖₂/η, exact, over up to 8 of the pairs, and the
    largest max |UᵀU − I| over the orthonormal parameters.

    Args:
        renormalize: Scale the steps of the pairs (A, B); null means wherever the optimizer takes step scales.
        retract: Put the orthonormal parameters back on the manifold after each step.
        measure_every_n_steps: Optimizer steps between two measurements; 0 for none.
    """

    def __init__(self, renormalize: bool | None = None, retract: bool = True, measure_every_n_steps: int = 25) -> None:
        self.renormalize = renormalize
        self.retract = retract
        self.measure_every_n_steps = measure_every_n_steps
        self.constraints: dict[str, Constraint] = {}
        self.measured: dict[str, float] = {}
        self._pairs: dict[str, tuple[Tensor, Tensor]] = {}
        self._orthonormal: dict[str, Tensor] = {}
        self._armed = False
        self._measure_now = self._measured_now = False
        self._before: dict[str, tuple[Tensor, Tensor]] = {}
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
        if self._orthonormal and self.retract:
            self.constraints["retract"] = StiefelRetraction(self._orthonormal)
        for name, state in self._restored.items():
            if name in self.constraints:
                self.constraints[name].load_state_dict(state)
        optimizer.register_step_post_hook(self._after_step)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        for constraint in self.constraints.values():
            constraint.before_step(optimizer)
        every = self.measure_every_n_steps
        self._measure_now = every > 0 and (trainer.global_step + 1) % every == 0
        if self._measure_now:
            apart = max(1, len(self._pairs) // MEASURED_PAIRS)
            for name in list(self._pairs)[::apart][:MEASURED_PAIRS]:
                a, b = self._pairs[name]
                self._before[name] = (a.detach().clone(), b.detach().clone())
        self._armed = True

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # The hook stays registered: removing it here would change the dictionary that the optimizer is iterating over.
        if not self._armed:
            return
        self._armed = False
        for constraint in self.constraints.values():
            constraint.after_step()
        if self._measure_now:
            self._measure(optimizer)

    @torch.no_grad()
    def _measure(self, optimizer: Optimizer) -> None:
        rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
        self.measured = {}
        ratios = []
        for name, (a, b) in self._before.items():
            new_a, new_b = self._pairs[name]
            delta = float(product_norm((new_a, new_b), (-a, b)))
            if rates[new_a] > 0:
                ratios.append(delta / rates[new_a])
        if ratios:
            self.measured["spectral/update_over_lr"] = max(ratios)
        if self._before:
            for index, side in enumerate("AB"):
                norms = [float(torch.linalg.matrix_norm(self._pairs[name][index], ord=2)) for name in self._before]
                self.measured[f"spectral/sigma_{side}"] = max(norms)
        if self._orthonormal:
            errors = [float(orthonormality_error(x)) for x in self._orthonormal.values()]
            self.measured["spectral/orthonormality_error"] = max(errors)
        self._before = {}
        self._measured_now = bool(self.measured)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._measured_now:
            self._measured_now = False
            # Straight to the loggers: Lightning would pass on only what falls on its own log interval.
            for logger in trainer.loggers:
                logger.log_metrics(self.measured, step=trainer.global_step - 1)

    def state_dict(self) -> dict[str, Any]:
        if not self.constraints:
            return self._restored  # saved before training began: pass on what was loaded
        return {name: constraint.state_dict() for name, constraint in self.constraints.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = dict(state_dict)


def _scaled_parameters(optimizer: Optimizer) -> set[Tensor]:
    parts = getattr(optimizer, "optimizers", [optimizer])
    return {p for part in parts if takes_step_scale(part) for group in part.param_groups for p in group["params"]}
