"""Spectral renormalization of W = V diag(s) Uᵀ: column scales that bound ‖ΔW‖₂, with no norm to be estimated."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lrtrain.constraints.vectors import stack_whole

FLOOR = 1e-2
"""Singular values below this share of the largest one count as that much: their square root divides the step."""


class BalancedRenormalization:
    """Before each step, gives U and V the column scales c = s^(−½) / (2 √s₁ + 1), s₁ the largest of s.

    In the balanced factors A = V diag(√s), B = U diag(√s) of W = A Bᵀ the gradient of A is G_V diag(s^(−½)), and a step
    of A by −ρ O is one of V by −ρ O diag(s^(−½)). The optimizer takes O from the scaled momentum and scales it again,
    V ← V − η polar(M_V diag(c)) diag(c), so this is Spectron's step on A and B. Their spectral norm is √s₁, exactly and
    at no cost; with ‖O‖₂ ≤ 1, ρ = η / (2 √s₁ + 1) ≤ 1 and orthonormal U, V

        ‖ΔW‖₂ ≤ 2 ρ √s₁ + ρ² ≤ η,

    beside what the step of s adds (max |Δs| to first order) and a retraction that changes W. Signs of s do not matter.

    Args:
        triples: name -> (U, s, V) with U (in, k), s (k), V (out, k), plain tensors or row-sharded DTensors.

    Source: Spectron, arXiv 2602.12429, Algorithm 1, carried over to the parameters of SCT.
    """

    def __init__(self, triples: Mapping[str, tuple[Tensor, Tensor, Tensor]]) -> None:
        self.triples = dict(triples)

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        """Sets the optimizer's scales.

        Raises:
            TypeError: no part of the optimizer that holds U or V takes column scales.
        """
        holders = column_scaled(optimizer)
        by_rank: dict[tuple[int, torch.device], list[str]] = defaultdict(list)
        for name, (u, s, v) in self.triples.items():
            if u not in holders or v not in holders:
                raise TypeError(f"balanced renormalization needs an optimizer that takes column scales for {name}")
            by_rank[s.shape[0], s.device].append(name)
        for names in by_rank.values():
            s = stack_whole([self.triples[name][1].detach() for name in names]).abs()
            largest = s.amax(-1, keepdim=True)
            scales = s.clamp_min(FLOOR * largest).clamp_min(torch.finfo(s.dtype).tiny).rsqrt() / (
                2 * largest.sqrt() + 1
            )
            for name, scale in zip(names, scales.unbind(), strict=True):
                u, _, v = self.triples[name]
                holders[u][u] = holders[v][v] = scale

    def after_step(self) -> None:
        """Nothing is left to do after the update."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """There is no state."""


def column_scaled(optimizer: Optimizer) -> dict[Tensor, dict[Tensor, Tensor]]:
    """parameter -> the `column_scale` of the optimizer that holds it, where that optimizer has one."""
    return {
        parameter: part.column_scale
        for part in getattr(optimizer, "optimizers", [optimizer])
        if isinstance(getattr(part, "column_scale", None), dict)
        for group in part.param_groups
        for parameter in group["params"]
    }
