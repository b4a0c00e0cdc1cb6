"""Largest singular values: an estimate that follows a changing matrix, and a bound that holds."""

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from lrtrain.linalg.batches import Batches
from lrtrain.linalg.full_float32 import full_float32
from lrtrain.linalg.row_sharded import all_reduce

SQUARINGS = 5
"""Of XᵀX in `norm_bound`."""


@overload
def spectral_norm(x: Tensor, v: Tensor, steps: int = ...) -> tuple[Tensor, Tensor]: ...
@overload
def spectral_norm(x: Sequence[Tensor], v: Sequence[Tensor], steps: int = ...) -> tuple[list[Tensor], list[Tensor]]: ...
@torch.no_grad()
@full_float32()
def spectral_norm(
    x: Tensor | Sequence[Tensor], v: Tensor | Sequence[Tensor], steps: int = 1
) -> tuple[Tensor, Tensor] | tuple[list[Tensor], list[Tensor]]:
    """Estimate ‖X‖₂ by power iteration from the right vector v: u = Xv/‖Xv‖, σ = ‖Xᵀu‖, v ← Xᵀu/σ.

    The estimate never exceeds ‖X‖₂ and never falls from one step to the next. Keep the returned vector and pass it to
    the next call: while X changes slowly, one step a call follows the norm.

    Args:
        x: (…, m, r), or a sequence of such; or row-sharded DTensors (m, r), with one all-reduce a step for all.
        v: (…, r), unit vectors, plain tensors that are the same on every process; not modified.
        steps: power steps in this call.

    Returns:
        σ (…) and the new unit vectors (…, r), float32 (float64 for a float64 input). σ of a zero matrix is 0, and its
        v is kept.

    Source: Spectron, arXiv 2602.12429, Algorithm 3.
    """
    if isinstance(x, Tensor):
        assert isinstance(v, Tensor)  # one vector for one matrix
        one_sigma, one_vector = spectral_norm([x], [v], steps)
        return one_sigma[0], one_vector[0]
    assert not isinstance(v, Tensor)
    batches = Batches(x)
    vectors = [w.to(y) for w, y in zip(batches.gather(v), batches.stacks, strict=True)]
    sigmas = [y.new_zeros(y.shape[0]) for y in batches.stacks]
    for _ in range(steps):
        pulled = _pull([_times(y, w) for y, w in zip(batches.stacks, vectors, strict=True)], batches)
        for index, w in enumerate(pulled):
            sigma, direction = _normalized(w)
            found = (sigma > torch.finfo(sigma.dtype).tiny).unsqueeze(-1)
            vectors[index] = torch.where(found, direction.to(vectors[index]), vectors[index])
            sigmas[index] = sigma.to(sigmas[index])
    return batches.scatter(sigmas), batches.scatter(vectors)


def _pull(products: Sequence[Tensor], batches: Batches) -> list[Tensor]:
    """Xᵀu of u = Xv/‖Xv‖ from the local rows of Xv: (n, r) for each stack."""
    units = [_normalized(product) for product in products]
    pulled = [_times(y.mT, u) for y, (_, u) in zip(batches.stacks, units, strict=True)]
    if not batches.groups:
        return pulled
    # Each process divided by its own norm; float64 has room for the squares.
    sums = [w.double() * size.double().unsqueeze(-1) for w, (size, _) in zip(pulled, units, strict=True)]
    squares = [size.double().square().unsqueeze(-1) for size, _ in units]
    reduced = all_reduce([*sums, *squares], batches.groups)
    return [
        w / square.sqrt().clamp_min(torch.finfo(torch.float64).tiny)
        for w, square in zip(reduced[: len(sums)], reduced[len(sums) :], strict=True)
    ]


def _times(y: Tensor, v: Tensor) -> Tensor:
    """Y v (n, m) of Y (n, m, r) and v (n, r)."""
    return (y @ v.unsqueeze(-1)).squeeze(-1)


def _normalized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Norms (n) and unit vectors of x (n, k), without squares that leave the dtype's range; zero stays zero."""
    tiny = torch.finfo(x.dtype).tiny
    largest = x.abs().amax(-1) if x.numel() else x.sum(-1)
    x = x / largest.clamp_min(tiny).unsqueeze(-1)
    size = torch.linalg.vector_norm(x, dim=-1)
    return largest * size, x / size.clamp_min(tiny).unsqueeze(-1)


@overload
def norm_bound(x: Tensor) -> Tensor: ...
@overload
def norm_bound(x: Sequence[Tensor]) -> list[Tensor]: ...
@torch.no_grad()
@full_float32()
def norm_bound(x: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    """An upper bound of ‖X‖₂ that no rounding undercuts, 5% or so above it.

    For the symmetric T = XᵀX/n, n = ‖XᵀX‖_F, ‖T‖₂² = ‖T²‖₂, so that squaring T (and dividing by its Frobenius norm)
    q times leaves ‖X‖₂ ≤ √n · r^(1/2^(q+2)). Every product adds the standard bound of its rounding error,
    γ_m ‖X‖_F² with γ_m = m u / (1 − m u), u the unit roundoff, whatever the order of summation.

    Args:
        x: (…, m, r), or a sequence of such; or row-sharded DTensors (m, r), with one all-reduce for all of their Gram
            matrices and one of a number each.

    Returns:
        (…), float32 (float64 for a float64 input), the same on every process.

    Source: N. Higham, Accuracy and Stability of Numerical Algorithms, section 3.5, for γ.
    """
    if isinstance(x, Tensor):
        return norm_bound([x])[0]
    batches = Batches(x)
    scaled, largest = batches.scaled()
    bounds = []
    for most, gram, m in zip(largest, batches.grams(scaled), batches.rows, strict=True):
        squared = _largest_eigenvalue_bound(gram) + _gamma(m + 8, gram.dtype) * gram.diagonal(dim1=-2, dim2=-1).sum(-1)
        bounds.append(most * squared.sqrt() * (1 + 16 * torch.finfo(gram.dtype).eps))
    return batches.scatter(bounds)


def _largest_eigenvalue_bound(t: Tensor) -> Tensor:
    """An upper bound (n) of ‖T‖₂ of symmetric T (n, r, r)."""
    gamma = _gamma(t.shape[-1], t.dtype)
    sizes = []
    for number in range(SQUARINGS + 1):
        t = t if number == 0 else t.mT @ t  # symmetric only up to rounding
        size = torch.linalg.vector_norm(t, dim=(-2, -1)) * (1 + gamma)
        sizes.append(size)
        t = t / size.clamp_min(torch.finfo(t.dtype).tiny)[:, None, None]
    bound = torch.ones_like(sizes[0])  # of the last T, whose Frobenius norm is at most 1
    for size in reversed(sizes[1:]):
        bound = (size * bound + gamma).sqrt()
    return sizes[0] * bound


def _gamma(terms: int, dtype: torch.dtype) -> float:
    """Higham's γ: the relative error of a sum of `terms` products."""
    error = terms * torch.finfo(dtype).eps / 2
    return error / (1 - error)
