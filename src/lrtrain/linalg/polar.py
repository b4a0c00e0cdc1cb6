"""The polar factor by Newton–Schulz, through the small Gram matrix."""

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from lrtrain.linalg.batches import Batches
from lrtrain.linalg.newton_schulz import Coefficients, Quintic, polynomials, rounds
from lrtrain.linalg.row_sharded import process_groups

Precision = Literal["float32", "bfloat16"]

SQUARE = {"float32": 1.3, "bfloat16": 2.0}
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
def polar(
    x: Tensor | Sequence[Tensor],
    steps: int = 5,
    coefficients: Coefficients = "paper",
    precision: Precision = "float32",
) -> Tensor | list[Tensor]:
    """Approximate polar factor `O = P Qᵀ` of `X = P Σ Qᵀ`.

    With (a, b, c) of `coefficients`, one step maps every singular value s of X/‖X‖_F to a·s + b·s³ + c·s⁵. The steps
    share the Gram matrix S = XᵀX/‖X‖_F², so they are carried out on (r, r) matrices and X is multiplied only twice:

        Q_k = a I + b S_k + c S_k²,   P ← P Q_k,   S_{k+1} = Q_k S_k Q_k,   O = X P / ‖X‖_F.

    S carries the rounding noise of its dtype, which Q amplifies where singular values are small; before that matters
    X P takes the place of X and S is computed anew (after three steps in bfloat16, five in float32). Matrices that are
    nearly square are iterated on directly, X ← X Q, which is cheaper there.

    With five steps the paper's coefficients leave the singular values of O in about 0.7 to 1.2 (directions below about
    1e-3 of ‖X‖_F stay smaller). A zero matrix gives zero; the scale of X has no influence, up to the ends of its dtype.

    Args:
        x: (…, m, n), or a sequence of such, any floating dtype; or row-sharded DTensors (m, n), whose Gram matrices are
            summed in one all-reduce for all (a second, of one number for each, agrees on their scale).
        steps: Newton–Schulz steps.
        coefficients: `paper` (Spectron's and Muon's), `polar_express`, or a, b, c of an odd quintic.
        precision: Of the products. `bfloat16` multiplies only deviations from multiples of I in bfloat16 and adds in
            float32, and its error is at most that of the usual iteration in bfloat16 on tall matrices. Sharded it
            concerns the product X P alone, and at low rank nothing: that stays float32.

    Returns:
        As x, in its dtype; float64 input is computed in float64.

    Source: Spectron, arXiv 2602.12429, Algorithm 2, in the Gram form; Polar Express, arXiv 2505.16932.
    """
    if isinstance(x, Tensor):
        return polar([x], steps, coefficients, precision)[0]
    sequence = polynomials(coefficients, steps)
    wide = [a.shape[-2] < a.shape[-1] and not process_groups(a) for a in x]
    batches = Batches([a.mT if w else a for a, w in zip(x, wide, strict=True)])
    factors = batches.scatter_rows(_iterate(batches, sequence, precision == "bfloat16"))
    return [factor.mT if w else factor for factor, w in zip(factors, wide, strict=True)]


def _iterate(batches: Batches, steps: Sequence[Quintic], bfloat16: bool) -> list[Tensor]:
    """O of the stacks (n, m, r), each by the form that costs least."""
    firsts = [batches.members(index)[0] for index in range(len(batches.rows))]
    half = [bfloat16 and x.dtype != torch.float64 and x.shape[-1] > LOW_RANK for x in firsts]
    if batches.groups:  # one all-reduce has to serve all stacks and all steps
        return _through_gram(batches, range(len(half)), steps, half, rough=False)
    results = []
    for index, x in enumerate(firsts):  # one stack at a time is in memory
        rows, rank = x.shape[-2:]
        if rows < SQUARE["bfloat16" if half[index] else "float32"] * rank:
            results.append(_direct(batches.scaled([index])[0][0], steps, half[index]))
        else:
            results += _through_gram(batches, [index], steps, [half[index]], rough=half[index])
    return results


def _direct(x: Tensor, steps: Sequence[Quintic], half: bool) -> Tensor:
    """The iteration on X (n, m, r) itself."""
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    if half:
        x = x.bfloat16()
    for a, b, c in steps:
        gram = x.mT @ x
        x = torch.baddbmm(x, x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), beta=a)
    return x


def _through_gram(
    batches: Batches, indices: Sequence[int], steps: Sequence[Quintic], half: Sequence[bool], rough: bool
) -> list[Tensor]:
    """The Gram form for some stacks: X P in bfloat16 where `half`, S and its polynomials too if `rough`."""
    polynomial = _rough_multiplier if rough else _multiplier
    factors, _ = batches.scaled(indices)
    if rough:
        factors = [y.bfloat16() for y in factors]
    for number, run in enumerate(rounds(steps, "bfloat16" if rough else "float32")):
        for index, (y, gram) in enumerate(zip(factors, batches.grams(factors), strict=True)):
            if number:
                multiplier = polynomial(gram, run)
            else:
                square = gram.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(torch.finfo(gram.dtype).tiny)[:, None, None]
                multiplier = polynomial(gram / square, run) / square.sqrt()
            dtype = torch.bfloat16 if half[index] else y.dtype
            factors[index] = y.to(dtype) @ multiplier.to(dtype)
    return factors


def _multiplier(gram: Tensor, run: Sequence[Quintic]) -> Tensor:
    """P of the steps: the polynomial of S (n, r, r) with which X is to be multiplied."""
    whole: Tensor | None = None
    for number, (a, b, c) in enumerate(run):
        step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        step.diagonal(dim1=-2, dim2=-1).add_(a)
        whole = step if whole is None else whole @ step
        if number + 1 < len(run):
            gram = step @ gram @ step
    assert whole is not None
    return whole


def _rough_multiplier(gram: Tensor, run: Sequence[Quintic]) -> Tensor:
    """The same with products in bfloat16."""
    whole: Centered | None = None
    s = Centered(gram)
    for number, (a, b, c) in enumerate(run):
        # a I + b S + c S², where S² = D² + 2ξS − ξ²I
        square = (s.deviation @ s.deviation).float().mul_(c).addcmul_(s.value, b + 2 * c * s.center)
        square.diagonal(dim1=-2, dim2=-1).add_((a - c * s.center.square())[:, 0])
        step = Centered(square)
        whole = step if whole is None else Centered(whole.times(step))
        if number + 1 < len(run):
            s = Centered(Centered(step.times(s)).times(step))
    assert whole is not None
    return whole.value


class Centered:
    """A symmetric float32 matrix X (n, r, r) as ξI + D, D in bfloat16, with ξ the mean of its diagonal.

    X Y = (X − ξI)(Y − υI) + υX + ξY − ξυI. As singular values approach 1 the matrices approach multiples of I, and with
    the deviation shrinks what the rounding of its product can spoil.
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value
        diagonal = value.diagonal(dim1=-2, dim2=-1)
        self.center = diagonal.mean(-1)[:, None, None]
        self.deviation = value.bfloat16()
        self.deviation.diagonal(dim1=-2, dim2=-1).copy_(diagonal - self.center[:, 0])

    def times(self, other: "Centered") -> Tensor:
        product = (self.deviation @ other.deviation).float()
        product.addcmul_(self.value, other.center).addcmul_(other.value, self.center)
        product.diagonal(dim1=-2, dim2=-1).sub_((self.center * other.center)[:, 0])
        return product
