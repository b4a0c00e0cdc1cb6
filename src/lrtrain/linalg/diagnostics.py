"""What a weight or its change is like: singular values, norms, ranks; a factorized one is never formed."""

from functools import cached_property

import torch
from torch import Tensor

from lrtrain.linalg.full_float32 import full_float32
from lrtrain.linalg.row_sharded import as_float, gathered, gram, inner, local, spread, with_local

DEAD = 1e-3
"""Share of the largest singular value up to which a direction is dead."""

EXACT = 2048
"""Rows or columns of a dense matrix, whichever are fewer, up to which all of its singular values are computed."""

SQUARINGS = 22
"""Of a Gram matrix on a GPU, for its largest eigenvalue."""

SUBSPACE, ITERATIONS = 8, 20
"""Vectors and steps of the subspace iteration that finds the norm of a larger dense matrix."""


def effective_rank(sigma: Tensor) -> Tensor:
    """exp(−Σ pᵢ ln pᵢ) with pᵢ = σᵢ/Σσ, of singular values (…, k): k where all are equal, 0 where all are zero.

    Source: Roy, Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007.
    """
    total = sigma.sum(-1, keepdim=True)
    shares = sigma / total.clamp_min(torch.finfo(sigma.dtype).tiny)
    return torch.special.entr(shares).sum(-1).exp() * (total.squeeze(-1) > 0)


def stable_rank(sigma: Tensor) -> Tensor:
    """‖W‖_F²/‖W‖₂² = Σσ²/max σ², of singular values (…, k); 0 where all are zero."""
    largest = sigma.amax(-1, keepdim=True).clamp_min(torch.finfo(sigma.dtype).tiny)
    return (sigma / largest).square().sum(-1)


def dead_directions(sigma: Tensor) -> Tensor:
    """Share of singular values (…, k) that are at most 1e-3 of the largest."""
    return (sigma <= DEAD * sigma.amax(-1, keepdim=True)).to(sigma.dtype).mean(-1)


class ThinProduct:
    """M = L Rᵀ of L (m, k) and R (n, k), through the k × k matrices LᵀL and RᵀR, in float64.

    σ² are the eigenvalues of (LᵀL)(RᵀR). Columns of L are scaled to unit length, and R's by the inverse, which leaves M
    as it is: what is lost is below 1e-7 of ‖L‖ ‖R‖ after that, however the two were scaled.

    Its figures are 0-d tensors that are the same on every process, NaN where M holds an infinity or a NaN.

    Args:
        left: L, plain or a row-sharded DTensor.
        right: R, sharded over the same processes; one all-reduce then serves both.
    """

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self._right, self._rows = _double(right), left.shape[0]
        self._grams = gram([_double(left), self._right])
        lengths = self._grams[0].diagonal().sqrt()
        self._lengths = torch.where(lengths > 0, lengths, 1)
        outer = self._lengths[:, None] * self._lengths
        self._left_gram, self._right_gram = self._grams[0] / outer, self._grams[1] * outer

    @cached_property
    def _core(self) -> Tensor:
        """A symmetric matrix (k, k) whose eigenvalues are σ²."""
        root = _root(self._left_gram)
        return root.mT @ self._right_gram @ root

    @cached_property
    def sigma(self) -> Tensor:
        """Singular values, descending."""
        return _eigenvalues(self._core).sqrt()

    @property
    def norm(self) -> Tensor:
        """‖M‖₂."""
        return _largest_eigenvalue(self._core).sqrt()

    @property
    def frobenius(self) -> Tensor:
        """‖M‖_F."""
        return (self._left_gram * self._right_gram).sum().clamp_min(0).sqrt()

    def factor_norms(self) -> tuple[Tensor, Tensor]:
        """‖L‖₂ and ‖R‖₂."""
        left, right = (_largest_eigenvalue(s).sqrt() for s in self._grams)
        return left, right

    def output_rms(self, x: Tensor) -> Tensor:
        """Root mean square of the entries of y = M x over the rows of x (tokens, n), whole on every process."""
        inside = self._lengths[:, None] * inner(self._right, spread(x.double().mT, self._right))
        squares = (inside * (self._left_gram @ inside)).sum().clamp_min(0)
        return (squares / (x.shape[0] * self._rows)).sqrt()


class DenseMatrix:
    """M itself, gathered where its rows are sharded; the same figures as of a `ThinProduct`.

    Singular values come from the smaller Gram matrix in float64. Above `EXACT` the norm alone is found, by subspace
    iteration in float32: never too large, and too small by 1% at most for usual spectra.
    """

    def __init__(self, matrix: Tensor) -> None:
        whole = gathered(matrix)
        self._exact = min(whole.shape) <= EXACT
        self._whole = whole.double() if self._exact else as_float(whole)
        self._tall = self._whole if whole.shape[0] >= whole.shape[1] else self._whole.mT

    @cached_property
    def _gram(self) -> Tensor:
        return gram(self._tall)

    @cached_property
    def sigma(self) -> Tensor | None:
        """Singular values, descending; None above `EXACT`."""
        return _eigenvalues(self._gram).sqrt() if self._exact else None

    @property
    def norm(self) -> Tensor:
        return _largest_eigenvalue(self._gram).sqrt() if self._exact else _leading_singular_value(self._tall)

    @property
    def frobenius(self) -> Tensor:
        return torch.linalg.vector_norm(self._tall, dtype=torch.float64)

    @full_float32()
    def output_rms(self, x: Tensor) -> Tensor:
        return (x.to(self._whole) @ self._whole.mT).square().mean().sqrt()


def thin_change(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Factors of 2k columns whose product is L'R'ᵀ − LRᵀ = (L' − L) R'ᵀ + L (R' − R)ᵀ, in float64.

    Taking the difference of the factors first keeps the digits of an update that is far smaller than the weight.

    Args:
        old: L (m, k) and R (n, k), plain or row-sharded DTensors.
        new: L' and R', laid out as these.
    """
    (left, right), (new_left, new_right) = ([_double(factor) for factor in pair] for pair in (old, new))
    return _beside(new_left - left, left), _beside(new_right, new_right - right)


def _double(x: Tensor) -> Tensor:
    return with_local(local(x.detach()).double(), x)


def _beside(x: Tensor, y: Tensor) -> Tensor:
    return with_local(torch.cat([local(x), local(y)], dim=-1), x)


def _eigenvalues(s: Tensor) -> Tensor:
    """Of symmetric S (k, k) without negative ones: descending; NaN where S is not finite."""
    if not bool(s.isfinite().all()):
        return torch.full_like(s[0], torch.nan)
    return torch.linalg.eigvalsh(s).flip(-1).clamp_min(0)


def _largest_eigenvalue(s: Tensor) -> Tensor:
    """Of symmetric S (k, k) without negative ones."""
    # A GPU multiplies fast and decomposes slowly.
    return _by_squaring(s) if s.is_cuda else _eigenvalues(s)[0]


def _by_squaring(s: Tensor) -> Tensor:
    """‖S‖₂ as ‖S^p‖_F^(1/p) with p = 2^22: too large by k^(1/2p) at most, a millionth."""
    logarithm = s.new_zeros(())
    for number in range(SQUARINGS + 1):
        s = s if number == 0 else s @ s
        size = torch.linalg.vector_norm(s).clamp_min(torch.finfo(s.dtype).tiny)
        logarithm = logarithm + size.log() / 2**number
        s = s / size
    return logarithm.exp()


def _root(s: Tensor) -> Tensor:
    """X (k, k) with X Xᵀ = S, of any rank; NaN where S is not finite."""
    if not bool(s.isfinite().all()):
        return torch.full_like(s, torch.nan)
    factor, failed = torch.linalg.cholesky_ex(s)
    if not failed:
        return factor
    values, vectors = torch.linalg.eigh(s)
    return vectors * values.clamp_min(0).sqrt()


@full_float32()
def _leading_singular_value(x: Tensor) -> Tensor:
    """‖X‖₂ of X (m, n) from below, from the same start on every process and in every run."""
    if not bool(x.isfinite().all()):
        return x.new_full((), torch.nan)
    v = torch.randn(x.shape[1], SUBSPACE, generator=torch.Generator().manual_seed(0)).to(x)
    for _ in range(ITERATIONS):
        v = torch.linalg.qr(x.mT @ (x @ v)).Q
    return torch.linalg.matrix_norm(x @ v, ord=2)
