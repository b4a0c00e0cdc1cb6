"""LoRA-Muon: steepest descent of a product A Bᵀ under its spectral norm."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lrtrain.linalg import Coefficients, Precision, local, norm_bound, polar_in_metric, with_local
from lrtrain.linalg.flops import in_metric_flops, newton_schulz_flops, norm_bound_flops
from lrtrain.linalg.newton_schulz import polynomials
from lrtrain.optim.matrix_optimizer import MatrixOptimizer, factor_decay
from lrtrain.optim.protocol import LOOK_AHEAD, MOMENTUM


class LoRAMuon(MatrixOptimizer):
    """Momentum and orthogonalization of each factor of W = A Bᵀ, measured by what it does to the product.

    For a factor X with gradient G, momentum β, learning rate η and weight decay λ, and S = YᵀY of the other factor Y:

        M ← β M + (1 − β) G,   D = polar(M S^(−½)) S^(−½),   X ← s X − η/(2 s) · D,   s = √(1 − λ η).

    So ‖ΔA Bᵀ‖₂ and ‖A ΔBᵀ‖₂ are η/2, and W, apart from the decay (1 − λ η) W, moves by η and the term of second order
    η²/(4 s²) D_A D_Bᵀ. Nothing depends on how A and B share their scale: A T and B T^(−ᵀ), with momenta that are
    transformed alike, make the same step of W. These norms are only about so much, since five Newton–Schulz steps leave
    singular values of 0.7 to 1.2. `strict` makes η a bound on all of ‖ΔW + λ η W‖₂: with b ≥ ‖polar(M S^(−½))‖₂ and
    γ ≥ ‖S_A^(−½)‖₂ ‖S_B^(−½)‖₂

        D ← D · c / max(1, b),   c = 2 / (1 + √(1 + γ η / s²)),   so that   c η + c² η² γ/(4 s²) = η.

    `constraints.PartnerMetric` gives each step the roots of S⁻¹ and γ; the step consumes them. A root may be any T with
    T Tᵀ = S⁻¹. A matrix W that gets none moves as a product of its own would: W ← (1 − λ η) W − η polar(M).

    Factors of equal shape are one batch; with rows sharded (FSDP2) only r × r matrices are communicated.

    Args:
        params: Matrices, or parameter groups of them; plain tensors or DTensors with `Shard(0)`.
        lr: Learning rate η > 0: about the spectral norm of one update of W.
        momentum: β of the average, 0 ≤ β < 1.
        nesterov: Take D from β M + (1 − β) G.
        weight_decay: λ ≥ 0 of the product, with λ η < 1.
        ns_steps: Newton–Schulz steps, at least 1.
        coefficients: Of Newton–Schulz, as in `Spectron`.
        precision: Of Newton–Schulz, as in `Spectron`.
        strict: The bound holds at every step, for every pair, to rounding.

    Raises:
        ValueError: a value out of range, a parameter that is not a matrix, or one that is sharded by columns; in a
            step, strict without a root for each parameter.

    Source: LoRA-Muon, arXiv 2606.12921.
    """

    second_moments = ()

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
        coefficients: Coefficients = "paper",
        precision: Precision = "float32",
        strict: bool = False,
    ) -> None:
        values = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(params, {**values, "ns_steps": ns_steps, "coefficients": coefficients, "precision": precision})
        self.strict = strict
        self.cross_norm: dict[Tensor, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "strict": self.strict, "cross_norm": self.cross_norm}

    def check(self, group: dict[str, Any]) -> None:
        factor_decay("LoRAMuon", group)
        if group["precision"] not in ("float32", "bfloat16"):
            raise ValueError(f"LoRAMuon: precision must be float32 or bfloat16, got {group['precision']}")
        polynomials(group["coefficients"], steps=1)  # refuses what is none
        super().check(group)

    @property
    def partner_root(self) -> dict[Tensor, Tensor]:
        """Factor X (m, r) -> T (r, r) with T Tᵀ = (YᵀY)⁻¹ of the other factor Y; `cross_norm` has its γ if strict."""
        return self.scales

    def step_flops(self, group: dict[str, Any], parameter: Tensor) -> int:
        """FLOPs of a step of one parameter, as `optim.protocol` asks for them."""
        m, r = parameter.shape
        elementwise = MOMENTUM + LOOK_AHEAD * group["nesterov"] + bool(group["weight_decay"])
        flops = newton_schulz_flops(m, r, group["ns_steps"], group["coefficients"], group["precision"])
        metric = 4 * m * r * r + norm_bound_flops(m, r) if self.strict else in_metric_flops(m, r, group["precision"])
        return int(elementwise * parameter.numel() + flops + metric)

    def update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        _, averages = self.averaged(parameters, group)
        momenta = dict(zip(parameters, averages, strict=True))
        factors = [parameter for parameter in parameters if parameter in self.partner_root]
        if alone := [parameter for parameter in parameters if parameter not in self.partner_root]:
            if self.strict:
                raise ValueError("LoRAMuon: strict needs the root of every other factor (constraints.PartnerMetric)")
            polars = self.polar_factors([momenta[parameter] for parameter in alone], alone, group)
            _move(alone, polars, factor_decay("LoRAMuon", group) ** 2, float(group["lr"]))
        if factors:
            s, rate = factor_decay("LoRAMuon", group), float(group["lr"])
            laid_out = [with_local(momenta[parameter], parameter) for parameter in factors]
            roots = [self.partner_root[parameter] for parameter in factors]
            if self.strict:
                directions = self._bounded(factors, laid_out, roots, group, rate / s**2)
            else:
                settings = group["ns_steps"], group["coefficients"], group["precision"]
                directions = [local(d) for d in polar_in_metric(laid_out, roots, *settings)]
            _move(factors, directions, s, rate / (2 * s))
            for parameter in factors:
                self.cross_norm.pop(parameter, None)

    def _bounded(
        self, parameters: list[Tensor], momenta: list[Tensor], roots: list[Tensor], group: dict[str, Any], rate: float
    ) -> list[Tensor]:
        """The local rows of D c / max(1, b), with η / s² for `rate`."""
        turned = [local(m) @ t.to(m.dtype) for m, t in zip(momenta, roots, strict=True)]
        factors = self.polar_factors(turned, parameters, group)
        bounds = norm_bound([with_local(o, p) for o, p in zip(factors, parameters, strict=True)])
        directions = []
        for parameter, o, root, bound in zip(parameters, factors, roots, bounds, strict=True):
            c = 2 / (1 + (1 + self.cross_norm[parameter] * rate).sqrt())
            directions.append(o @ (root.mT * (c / bound.clamp_min(1))).to(o.dtype))
        return directions


def _move(parameters: list[Tensor], directions: list[Tensor], shrink: float, rate: float) -> None:
    """X ← shrink · X − rate · D, on the local rows."""
    rows = [local(parameter) for parameter in parameters]
    if shrink != 1:
        torch._foreach_mul_(rows, shrink)
    torch._foreach_add_(rows, directions, alpha=-rate)
