"""Roots of the inverse Gram matrix: the metric in which a factor of a product is measured."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lrtrain.linalg.batches import Batches
from lrtrain.linalg.full_float32 import full_float32
from lrtrain.linalg.row_sharded import gram

FLOOR = 1e-6
"""Share of tr S by which S is lifted before it is inverted."""


@torch.no_grad()
@full_float32()
def inverse_root(x: Sequence[Tensor]) -> list[Tensor]:
    """T (r, r), upper triangular, with T Tᵀ = (S + δ I)⁻¹, S = XᵀX and δ = 1e-6 · tr S.

    T is R⁻¹ of the Cholesky factor S + δ I = RᵀR. The lift δ keeps eigenvalues of S below it, which rounding has made
    or which a matrix of lower rank has, from being inverted: ‖T‖₂ ≤ δ^(−½), and ‖X T‖₂ ≤ 1 whatever X is.

    Args:
        x: Matrices (m, r), any floating dtype; or row-sharded DTensors, with one all-reduce for all.

    Returns:
        T for each, float32 (float64 for a float64 input), whole on every process; zero for a zero X.
    """
    batches = Batches(gram(x))
    return batches.scatter([_root(s) for s in batches.stacks])


def _root(s: Tensor) -> Tensor:
    """T of a stack of S (n, r, r)."""
    size = s.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    identity = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
    lifted = s / size.clamp_min(torch.finfo(s.dtype).tiny) + FLOOR * identity
    upper = torch.linalg.cholesky_ex(lifted, upper=True).L
    root = torch.linalg.solve_triangular(upper, identity, upper=True)
    return torch.where(size > 0, root * size.rsqrt(), 0)
