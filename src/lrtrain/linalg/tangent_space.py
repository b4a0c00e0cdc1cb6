"""The tangent space of the Stiefel manifold."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lrtrain.linalg.batches import Batches
from lrtrain.linalg.row_sharded import all_reduce


@torch.no_grad()
def tangent(bases: Sequence[Tensor], directions: Sequence[Tensor]) -> list[Tensor]:
    """Each direction Z without the part that would change XᵀX: Z − X sym(XᵀZ), sym(A) = ½(A + Aᵀ).

    The orthogonal projection to the tangent space {Z : XᵀZ + ZᵀX = 0} at a matrix X of orthonormal columns. Matrices of
    equal shape are one batch; all of them share one all-reduce where rows are sharded.

    Args:
        bases: X (m, k) with XᵀX = I, plain or row-sharded DTensors.
        directions: Z (m, k), laid out as their bases.

    Returns:
        Matrices (m, k), laid out and in the dtype of the directions; computed in float32 (float64 for float64 input).

    Source: Absil, Mahony, Sepulchre, Optimization Algorithms on Matrix Manifolds, example 3.6.2.
    """
    x, z = Batches(bases), Batches(directions)
    products = all_reduce([a.mT @ b for a, b in zip(x.stacks, z.stacks, strict=True)], x.groups)
    return z.scatter_rows(
        [torch.baddbmm(b, a, p + p.mT, alpha=-0.5) for a, b, p in zip(x.stacks, z.stacks, products, strict=True)]
    )
