"""Spectral renormalization of W = V diag(s) Uᵀ: column scales that bound ‖ΔW‖₂, with no norm to be estimated."""

from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrtrain.constraints.constraint import NO_SPECTRAL, THAW, Constraint, NothingToHoldError
from lrtrain.constraints.factors import spectral_triples
from lrtrain.linalg import gathered
from lrtrain.optim.protocol import holders

FLOOR = 1e-2
"""Singular values below this share of the largest one count as that much: their square root divides the step."""


class BalancedRenormalization(Constraint):
    """Before each step, gives U and V the column scales c = s^(−½) / (2 √s₁ + 1), s₁ the largest of s.

    In the balanced factors A = V diag(√s), B = U diag(√s) of W = A Bᵀ the gradient of A is G_V diag(s^(−½)), and a step
    of A by −ρ O is one of V by −ρ O diag(s^(−½)). The optimizer takes O from the scaled momentum and scales it again,
    V ← V − η polar(M_V diag(c)) diag(c), so this is Spectron's step on A and B. Their spectral norm is √s₁, exactly and
    at no cost; with ‖O‖₂ ≤ 1, ρ = η / (2 √s₁ + 1) ≤ 1 and orthonormal U, V

        ‖ΔW‖₂ ≤ 2 ρ √s₁ + ρ² ≤ η,

    beside what the step of s adds (max |Δs| to first order) and a retraction that changes W. Signs of s do not matter.

    Source: Spectron, arXiv 2602.12429, Algorithm 1, carried over to the parameters of SCT.
    """

    held: dict[str, tuple[Tensor, Tensor, Tensor]]
    """name -> (U, s, V) with U (in, k), s (k), V (out, k), plain tensors or row-sharded DTensors."""

    def attach(self, model: nn.Module, optimizer: Optimizer) -> None:
        triples, scaled = spectral_triples(model), holders(optimizer, "column_scale")
        if not triples:
            raise NothingToHoldError(NO_SPECTRAL)
        for name, (u, _, v) in triples.items():
            for side, basis in (("U", u), ("V", v)):
                if basis not in scaled and not basis.requires_grad:
                    raise ValueError(f"{side} of {name} is frozen: {THAW}")
            if u not in scaled or v not in scaled:
                raise ValueError(
                    f"the optimizer of U and V of {name} takes no column scales; use lrtrain.optim.Stiefel for "
                    "model.optimizers.hidden or leave it out"
                )
        self.hold(triples)

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        """Sets the optimizer's scales.

        Raises:
            TypeError: no part of the optimizer that holds U or V takes column scales.
        """
        scaled = holders(optimizer, "column_scale")
        by_rank: dict[tuple[int, torch.device], list[str]] = defaultdict(list)
        for name, (u, s, v) in self.held.items():
            if u not in scaled or v not in scaled:
                raise TypeError(f"balanced renormalization needs an optimizer that takes column scales for {name}")
            by_rank[s.shape[0], s.device].append(name)
        for names in by_rank.values():
            s = gathered(torch.stack([self.held[name][1].detach() for name in names])).abs()
            largest = s.amax(-1, keepdim=True)
            scales = s.clamp_min(FLOOR * largest).clamp_min(torch.finfo(s.dtype).tiny).rsqrt() / (
                2 * largest.sqrt() + 1
            )
            for name, scale in zip(names, scales.unbind(), strict=True):
                u, _, v = self.held[name]
                scaled[u].column_scale[u] = scaled[v].column_scale[v] = scale

    def step_flops(self, optimizer: Optimizer) -> int:
        """Of each s the absolute value, a bound from below, its root and the quotient; U and V are scaled twice."""
        return sum(4 * s.numel() + 2 * (u.numel() + v.numel()) for u, s, v in self.held.values())
