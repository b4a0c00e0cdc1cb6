"""Spectron: averaged momentum, orthogonalized, with a step scale that bounds the update of the product."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lrtrain.linalg import Coefficients, Precision, local, norm_bound, with_local
from lrtrain.linalg.flops import newton_schulz_flops, norm_bound_flops
from lrtrain.linalg.newton_schulz import polynomials
from lrtrain.optim.matrix_optimizer import MatrixOptimizer, factor_decay
from lrtrain.optim.protocol import LOOK_AHEAD, MOMENTUM


class Spectron(MatrixOptimizer):
    """Momentum and orthogonalization of each factor of W = A Bᵀ.

    For every factor X with gradient G, momentum β and learning rate η:

        M ← β M + (1 − β) G,   O = polar(M)  (O = M with orthogonalize off),   X ← √(1 − λ η) X − η · scale · O.

    So decay, off by default, shrinks the product W by 1 − λ η. With Nesterov's look-ahead, which the paper does not
    use, O comes from β M + (1 − β) G instead of M.

    `scale` is `step_scale[X]` and 1 where there is none. `constraints.SpectralRenormalization` sets it to
    1/(‖A‖₂ + ‖B‖₂ + 1) before each step, which bounds ‖ΔW + λ η W‖₂ by about η; a step consumes the scales, so that
    none is used twice. It is only about η since five Newton–Schulz steps leave singular values of O up to 1.2, and one
    power step underestimates ‖A‖₂. `strict` makes it a bound: O is divided by max(1, ‖O‖₂), and the constraint takes
    upper bounds of the norms. What is left is the rounding of the new weights, u (‖A‖_F ‖B‖₂ + ‖A‖₂ ‖B‖_F) at most with
    u = 6e-8 in float32: far below η unless norms are large, but 1e-3 and more at ‖A‖₂ = ‖B‖₂ = 100.

    Factors of equal shape are orthogonalized as one batch; with rows sharded (FSDP2) the Gram matrices of all factors
    travel together, in two all-reduces for five Newton–Schulz steps. Nothing in a step waits for a GPU.

    Args:
        params: Matrices, or parameter groups of them; plain tensors or DTensors with `Shard(0)`.
        lr: Learning rate η: the bound on ‖ΔW‖₂ of one step, 0 < η ≤ 1.
        momentum: β of the average, 0 ≤ β < 1.
        nesterov: Look one step of the momentum ahead.
        weight_decay: λ ≥ 0 of the product, with λ η < 1.
        orthogonalize: Use the polar factor of the momentum; off, the momentum itself.
        ns_steps: Newton–Schulz steps, at least 1.
        coefficients: Of Newton–Schulz: `paper`, `polar_express`, or a, b, c of an odd quintic.
        precision: `float32`, or `bfloat16`: on one process, a polar factor as rough as `torch.optim.Muon`'s.
        strict: ‖ΔW + λ η W‖₂ ≤ η at every step, for every pair, to rounding, at the cost of a few small products.

    Raises:
        ValueError: a value out of range, a parameter that is not a matrix, or one that is sharded by columns; in a
            step, lr out of range, or strict without a step scale for each parameter.

    Source: Spectron, arXiv 2602.12429, Algorithms 1 to 3.
    """

    second_moments = ()

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.05,
        momentum: float = 0.95,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        orthogonalize: bool = True,
        ns_steps: int = 5,
        coefficients: Coefficients = "paper",
        precision: Precision = "float32",
        strict: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "nesterov": nesterov,
                "weight_decay": weight_decay,
                "orthogonalize": orthogonalize,
                "ns_steps": ns_steps,
                "coefficients": coefficients,
                "precision": precision,
            },
        )
        self.strict = strict

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "strict": self.strict}

    def check(self, group: dict[str, Any]) -> None:
        _check_rate(group["lr"])
        factor_decay("Spectron", group)
        if group["precision"] not in ("float32", "bfloat16"):
            raise ValueError(f"Spectron: precision must be float32 or bfloat16, got {group['precision']}")
        polynomials(group["coefficients"], steps=1)  # refuses what is none
        super().check(group)

    @property
    def step_scale(self) -> dict[Tensor, Tensor]:
        """Parameter -> the 0-d tensor that its next step is multiplied by."""
        return self.scales

    def step_flops(self, group: dict[str, Any], parameter: Tensor) -> int:
        """FLOPs of a step of one parameter, as `optim.protocol` asks for them."""
        m, r = sorted(parameter.shape, reverse=True)
        flops = (MOMENTUM + LOOK_AHEAD * group["nesterov"] + bool(group["weight_decay"])) * parameter.numel()
        if group["orthogonalize"]:
            flops += newton_schulz_flops(m, r, group["ns_steps"], group["coefficients"], group["precision"])
        return flops + self.strict * norm_bound_flops(m, r)

    def update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        rate = float(group["lr"])
        if rate != 0:
            _check_rate(rate)
        _, updates = self.averaged(parameters, group)
        if group["orthogonalize"]:
            updates = self.polar_factors(updates, parameters, group)
        rows, scales = [local(p) for p in parameters], self._scales(parameters, updates)
        if group["weight_decay"]:
            torch._foreach_mul_(rows, factor_decay("Spectron", group))
        if scales is None:
            torch._foreach_add_(rows, updates, alpha=-rate)
        else:
            torch._foreach_addcmul_(rows, updates, scales, value=-rate)

    def _scales(self, parameters: list[Tensor], updates: list[Tensor]) -> list[Tensor] | None:
        """What each update is multiplied by in addition to η, 0-d tensors; None where it is 1 for all."""
        scales = [self.step_scale.get(parameter) for parameter in parameters]
        if not self.strict:
            if all(scale is None for scale in scales):
                return None
            return [
                update.new_ones(()) if s is None else s.to(update) for update, s in zip(updates, scales, strict=True)
            ]
        if any(scale is None for scale in scales):
            raise ValueError(
                "Spectron: strict needs a step scale for every factor (constraints.SpectralRenormalization)"
            )
        bounds = norm_bound([with_local(update, p) for update, p in zip(updates, parameters, strict=True)])
        return [(s / b.clamp_min(1)).to(u) for s, b, u in zip(scales, bounds, updates, strict=True) if s is not None]


def _check_rate(lr: float) -> None:
    if not 0 < lr <= 1:
        raise ValueError(f"Spectron: lr must be in (0, 1], since it bounds the norm of one update, got {lr}")
