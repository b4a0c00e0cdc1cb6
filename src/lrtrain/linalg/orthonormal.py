"""Orthonormal bases by QR with a positive diagonal, through the small Gram matrix, and their tangent spaces."""

from collections.abc import Iterator, Sequence
from typing import overload

import torch
from torch import Tensor

from lrtrain.linalg.batches import Batches
from lrtrain.linalg.full_float32 import full_float32
from lrtrain.linalg.row_sharded import all_reduce, as_float, gathered, gram, local, spread

NEAR = 0.5
"""‖QᵀQ − I‖_F up to which one Cholesky step gives an orthonormal basis to rounding."""


@overload
def orthonormalize(x: Tensor) -> tuple[Tensor, Tensor]: ...
@overload
def orthonormalize(x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]: ...
@torch.no_grad()
@full_float32()
def orthonormalize(x: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor] | tuple[list[Tensor], list[Tensor]]:
    """The QR factorization X = Q R whose R has a non-negative diagonal, which makes it unique and continuous.

    From the Cholesky factor of the Gram matrix, XᵀX = RᵀR and Q = X R⁻¹: once for columns that are nearly orthonormal,
    as after an optimizer step; twice, on columns of unit length first, for others (CholeskyQR2). What is too
    ill-conditioned for that goes to Householder's QR, whose columns are multiplied by sign(diag R), sign(0) = +1.

    Which of the three it takes is read from the device, once for all matrices.

    Args:
        x: (…, m, r) with m ≥ r, any floating dtype, or a sequence of such; or row-sharded DTensors (m, r), with one
            all-reduce a Cholesky step for all. Those that need Householder's QR are gathered.

    Returns:
        Q (…, m, r) with QᵀQ = I, contiguous, in x's dtype and layout, and R (…, r, r) upper triangular in the dtype of
        the computation: float32 (float64 for a float64 input), whole on every process.

    Source: SCT, arXiv 2604.00733, the retraction; CholeskyQR2, Yamamoto et al. 2015.
    """
    if isinstance(x, Tensor):
        bases, factors = orthonormalize([x])
        return bases[0], factors[0]
    batches = Batches(x)
    results = list(_factorized(batches))
    return batches.scatter_rows([q for q, _ in results]), batches.scatter([r for _, r in results])


@torch.no_grad()
@full_float32()
def orthonormalize_(x: Sequence[Tensor]) -> list[Tensor]:
    """`orthonormalize` in place: X ← Q for matrices (m, r), returning each R (r, r)."""
    batches = Batches(x)
    factors = []
    for index, (q, r) in enumerate(_factorized(batches)):
        torch._foreach_copy_([local(matrix) for matrix in batches.members(index)], list(q.unbind()))
        factors.append(r)
    return batches.scatter(factors)


def _factorized(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """Q (n, m, r), the local rows, and R (n, r, r) of each stack."""
    grams = batches.grams(batches.stacks)
    near = _all_below(NEAR, [_deviation(s) for s in grams])
    for index, (y, s, is_near) in enumerate(zip(batches.stacks, grams, near, strict=True)):
        yield _cholesky_step(y, s) if is_near else _general(batches, index)


def _cholesky_step(y: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Q = Y R⁻¹ and R of S = YᵀY = RᵀR, of a stack (n, m, r)."""
    upper = torch.linalg.cholesky_ex(s, upper=True).L
    identity = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
    return y @ torch.linalg.solve_triangular(upper, identity, upper=True), upper


def _general(batches: Batches, index: int) -> tuple[Tensor, Tensor]:
    """QR of the matrices of one stack, of any conditioning and scale."""
    scaled, (largest,) = batches.scaled([index])
    (y,), (s,) = scaled, batches.grams(scaled)
    lengths = s.diagonal(dim1=-2, dim2=-1).sqrt()
    safe = lengths.clamp_min(torch.finfo(s.dtype).tiny)
    first, r_first = _cholesky_step(y / safe[:, None, :], s / (safe[:, :, None] * safe[:, None, :]))
    (again,) = batches.grams([first])
    q, r_second = _cholesky_step(first, again)
    r = r_second @ r_first * lengths[:, None, :] * largest[:, None, None]
    well = (_deviation(again) < NEAR).tolist()
    for number in (i for i, is_well in enumerate(well) if not is_well):
        q[number], r[number] = _householder(batches, index, number)
    return q, r


def _householder(batches: Batches, index: int, number: int) -> tuple[Tensor, Tensor]:
    """Q (the local rows) and R of one matrix, by Householder's QR with the signs of R's diagonal made positive."""
    matrix = batches.members(index)[number] if batches.groups else batches.stacks[index][number]
    whole = as_float(gathered(matrix))
    largest = torch.linalg.vector_norm(whole, ord=torch.inf).clamp_min(torch.finfo(whole.dtype).tiny)
    q, r = torch.linalg.qr(whole / largest)
    sign = torch.where(r.diagonal() < 0, -1.0, 1.0).to(r)
    return local(spread(q * sign, matrix)), r * sign[:, None] * largest


def _deviation(s: Tensor) -> Tensor:
    """‖S − I‖_F (n) of S (n, r, r)."""
    return torch.linalg.matrix_norm(s - torch.eye(s.shape[-1], dtype=s.dtype, device=s.device))


def _all_below(limit: float, values: Sequence[Tensor]) -> list[bool]:
    """Whether all entries of each tensor are below the limit, NaN not; one read from the device for all.

    On the meta device, where there is nothing to read, they are.
    """
    if not values or values[0].is_meta:
        return [True] * len(values)
    return torch.stack([(value < limit).all() for value in values]).tolist()


@torch.no_grad()
@full_float32()
def orthonormality_error(x: Tensor) -> Tensor:
    """max |XᵀX − I| over the columns of X (…, m, r) or of a row-sharded DTensor (m, r).

    Returns:
        (…), float32 (float64 for a float64 input), the same on every process.
    """
    s = gram(x)
    return (s - torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)).abs().amax(dim=(-2, -1))


@torch.no_grad()
@full_float32()
def project_to_tangent(bases: Sequence[Tensor], directions: Sequence[Tensor]) -> list[Tensor]:
    """Removes from each direction Z the part that would change XᵀX: Z − X sym(XᵀZ), sym(A) = ½(A + Aᵀ).

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
