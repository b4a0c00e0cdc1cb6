"""The polar factor by Newton–Schulz, through the small Gram matrix."""

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from lrtrain.linalg.batches import Batches
from lrtrain.linalg.full_float32 import full_float32
from lrtrain.linalg.newton_schulz import Coefficients, Quintic, polynomials, rounds
from lrtrain.linalg.row_sharded import process_groups

Precision = Literal["float32", "bfloat16"]

SQUARE = 1.5
"""Rows / columns below which steps on X itself cost less than Gram matrices and their polynomials."""

LOW_RANK = 64
"""Columns up to which bfloat16 gains nothing: the numbers take as long to read as to multiply."""


@overload
def polar(x: Tensor, steps: int = ..., coefficients: Coefficients = ..., precision: Precision = ...) -> Tensor: ...
@overload
def polar(
    x: Sequence[Tensor], steps: int = ..., coefficients: Coefficients = ..., precision: Precision = ...
) -> list[Tensor]: ...
@torch.no_grad()
@full_float32()
def polar(
    x: Tensor | Sequence[Tensor],
    steps: int = 5,
    coefficients: Coefficients = "paper",
    precision: Precision = "float32",
) -> Tensor | list[Tensor]:
    """Approximate polar factor `O = P Qᵀ` of `X = P Σ Qᵀ`.

    With (a, b, c) of `coefficients`, one step maps every singular value s of X/‖X‖_F to a·s + b·s³ + c·s⁵. Steps share
    the Gram matrix S = XᵀX/‖X‖_F², so they are carried out on (r, r) matrices:

        E_k = b S_k + c S_k²,   Q_k = a I + E_k,   S_{k+1} = Q_k S_k Q_k,   X ← X Q_1 Q_2 ….

    S carries rounding noise, which Q amplifies where singular values are small, so S is computed anew after the second
    step of five. Multiples of I are kept apart from what is added to them, whose rounding would be noise too: O is as
    far from the exact iteration as the same steps on X itself, X ← X Q, to a small factor or 2e-4. Those are taken
    where X is nearly square, which is cheaper there.

    With five steps the paper's coefficients leave the singular values of O in about 0.7 to 1.2 (directions below about
    1e-3 of ‖X‖_F stay smaller). A zero matrix gives zero; the scale of X has no influence, up to the ends of its dtype.

    Args:
        x: (…, m, n), or a sequence of such, any floating dtype; or row-sharded DTensors (m, n), whose Gram matrices are
            summed in one all-reduce for all, twice in five steps; one before, of a number each, agrees on their scale.
        steps: Newton–Schulz steps.
        coefficients: `paper` (Spectron's and Muon's), `polar_express`, or a, b, c of an odd quintic.
        precision: `bfloat16` takes the steps on X itself, all in bfloat16, as `torch.optim.Muon` does. Matrices of at
            most 64 columns and those whose rows are sharded stay float32 all the same.

    Returns:
        As x, in its dtype; float64 input is computed in float64.

    Source: Spectron, arXiv 2602.12429, Algorithm 2, in the Gram form; Polar Express, arXiv 2505.16932.
    """
    if isinstance(x, Tensor):
        return polar([x], steps, coefficients, precision)[0]
    sequence = polynomials(coefficients, steps)
    wide = [a.shape[-2] < a.shape[-1] and not process_groups(a) for a in x]
    batches = Batches([a.mT if w else a for a, w in zip(x, wide, strict=True)])
    factors = batches.scatter_rows(_iterate(batches, sequence, precision))
    return [factor.mT if w else factor for factor, w in zip(factors, wide, strict=True)]


@torch.no_grad()
@full_float32()
def polar_in_metric(
    x: Sequence[Tensor],
    roots: Sequence[Tensor],
    steps: int = 5,
    coefficients: Coefficients = "paper",
    precision: Precision = "float32",
) -> list[Tensor]:
    """polar(X T) Tᵀ, at little more than the cost of polar(X).

    With T Tᵀ = S⁻¹ it is the steepest direction D of ⟨X, D⟩ under ‖D S^½‖₂ ≤ 1, whichever root T is: for orthogonal Q,
    polar(X T Q) = polar(X T) Q. T and Tᵀ go into the (r, r) polynomials, so that no further product with X is needed;
    the first Gram matrix Tᵀ(XᵀX)T then carries rounding noise of cond(T)² units.

    Args:
        x: Matrices (m, r) with m ≥ r, or row-sharded DTensors, as for `polar`.
        roots: T (r, r) for each, plain tensors that are the same on every process. A zero T gives zero.
        steps: Newton–Schulz steps.
        coefficients: As for `polar`.
        precision: As for `polar`.

    Returns:
        As x, in its dtype.

    Source: LoRA-Muon, arXiv 2606.12921.
    """
    batches = Batches(x)
    factors = _iterate(batches, polynomials(coefficients, steps), precision, batches.gather(roots))
    return batches.scatter_rows(factors)


def on_itself(m: int, r: int, precision: Precision) -> bool:
    """Whether a whole matrix (m, r) with m ≥ r is iterated on directly, and not through its Gram matrix."""
    return in_bfloat16(r, precision) or m < SQUARE * r


def in_bfloat16(r: int, precision: Precision) -> bool:
    """Whether a whole matrix of r columns is multiplied in bfloat16."""
    return precision == "bfloat16" and r > LOW_RANK


def _iterate(
    batches: Batches, steps: Sequence[Quintic], precision: Precision, roots: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """O of the stacks (n, m, r), or polar(X T) Tᵀ with roots T (n, r, r), each by the form that costs least."""
    indices = range(len(batches.rows))
    if batches.groups:  # an all-reduce has to serve all stacks
        return _through_gram(batches, indices, steps, roots)
    results = []
    for index in indices:  # one stack at a time is in memory
        first = batches.members(index)[0]
        rows, rank = first.shape[-2:]
        if on_itself(rows, rank, precision):
            half = in_bfloat16(rank, precision) and first.dtype != torch.float64
            x = batches.scaled([index])[0][0]
            if roots is None:
                results.append(_directly(x, steps, half))
            else:
                results.append(_directly(x @ _unit(roots[index]), steps, half).to(x) @ roots[index].mT)
        else:
            results += _through_gram(batches, [index], steps, roots and [roots[index]])
    return results


def _directly(x: Tensor, steps: Sequence[Quintic], half: bool) -> Tensor:
    """The iteration on X (n, m, r) itself."""
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    if half:
        x = x.bfloat16()
    for a, b, c in steps:
        gram = x.mT @ x
        x = torch.baddbmm(x, x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), beta=a)
    return x


def _through_gram(
    batches: Batches, indices: Sequence[int], steps: Sequence[Quintic], roots: Sequence[Tensor] | None
) -> list[Tensor]:
    """The Gram form for some stacks and the roots T of these, if any."""
    factors, _ = batches.scaled(indices)
    runs = rounds(steps)
    for number, run in enumerate(runs):
        for index, (y, gram) in enumerate(zip(factors, batches.grams(factors), strict=True)):
            before = _unit(roots[index]) if roots and number == 0 else None
            after = roots[index].mT if roots and number + 1 == len(runs) else None
            if before is not None:
                gram = before.mT @ gram @ before
            size = gram.new_ones(len(gram), 1, 1) if number else _frobenius(gram)
            p, deviation = _multiplier(gram / size.square(), run)
            if before is None and after is None:
                factors[index] = (y @ (deviation / size)).addcmul_(y, p / size)
                continue
            deviation.diagonal(dim1=-2, dim2=-1).add_(p)
            multiplier = deviation / size
            multiplier = multiplier if before is None else before @ multiplier
            factors[index] = y @ (multiplier if after is None else multiplier @ after)
    return factors


def _unit(root: Tensor) -> Tensor:
    """T (n, r, r) over its largest entry: its size has no influence on polar(X T)."""
    return root / root.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(root.dtype).tiny)


def _frobenius(gram: Tensor) -> Tensor:
    """‖Y‖_F (n, 1, 1), not zero, of S = YᵀY (n, r, r)."""
    square = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    return square.clamp_min(torch.finfo(gram.dtype).tiny).sqrt()


def _multiplier(gram: Tensor, run: Sequence[Quintic]) -> tuple[float, Tensor]:
    """p and D of P = p I + D: the polynomial of S (n, r, r) with which a run of steps multiplies X."""
    p, deviation = 1.0, torch.zeros_like(gram)
    for number, (a, b, c) in enumerate(run):
        change = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # Q = a I + E
        deviation = torch.baddbmm(deviation, deviation, change, beta=a).add_(change, alpha=p) if number else change
        p *= a
        if number + 1 < len(run):
            half_way = torch.baddbmm(gram, gram, change, beta=a)
            gram = torch.baddbmm(half_way, change, half_way, beta=a)
    return p, deviation
