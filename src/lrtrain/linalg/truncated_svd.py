"""The leading singular triplets of a dense matrix, and those that a Gaussian one would have."""

from functools import cache

import torch
from torch import Tensor

from lrtrain.linalg.full_float32 import full_float32
from lrtrain.linalg.orthonormal import orthonormalize

GRID = 1 << 14
"""Points at which the law of the singular values is integrated."""


@torch.no_grad()
@full_float32()
def truncated_svd(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading `rank` singular triplets: W ≈ P diag(σ) Qᵀ, the best approximation of that rank (Eckart–Young).

    Through the eigenvectors of the smaller Gram matrix, which is several times faster than a full SVD. It squares the
    condition number, so triplets below about 1e-3·σ₁ (float32) are re-orthonormalized and their σ is re-measured
    from W itself.

    Args:
        weight: (out, in).
        rank: 1 … min(out, in).

    Returns:
        P (out, rank), σ (rank) in descending order, Q (in, rank), in weight's dtype; computed in float32 (float64 for
        a float64 input).
    """
    out_features, in_features = weight.shape
    if out_features < in_features:
        q, sigma, p = truncated_svd(weight.mT, rank)
        return p, sigma, q
    work = weight if weight.dtype == torch.float64 else weight.float()
    eigenvectors = torch.linalg.eigh(work.mT @ work).eigenvectors[:, -rank:].flip(-1)
    p, r = torch.linalg.qr(work @ eigenvectors)
    left, sigma, right = torch.linalg.svd(r)
    return (p @ left).to(weight.dtype), sigma.to(weight.dtype), (eigenvectors @ right.mT).to(weight.dtype)


def rank_for_energy(weight: Tensor, energy: float) -> int:
    """The smallest rank whose triplets hold the share `energy` (0 to 1] of Σσ², of a weight (out, in)."""
    return energy_rank(torch.linalg.svdvals(weight.detach().double()), energy)


def energy_rank(sigma: Tensor, energy: float) -> int:
    """The smallest number of leading singular values that hold the share `energy` (0 to 1] of Σσ²; descending σ."""
    squares = sigma.double() ** 2
    share = squares.cumsum(0) / squares.sum()
    return min(int((share < energy - 1e-12).sum()) + 1, len(squares))


@torch.no_grad()
@full_float32()
def product_svd(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All singular triplets of left rightᵀ with left (m, k) and right (n, k), k ≤ m and n, which is never formed.

    Returns:
        P (m, k), σ (k) in descending order, Q (n, k), with left rightᵀ = P diag(σ) Qᵀ; in the dtype of the factors.
    """
    left_basis, left_core = torch.linalg.qr(left)
    right_basis, right_core = torch.linalg.qr(right)
    p, sigma, q = torch.linalg.svd(left_core @ right_core.mT)
    return left_basis @ p, sigma, right_basis @ q.mT


@torch.no_grad()
def gaussian_svd(out_features: int, in_features: int, rank: int, std: float) -> tuple[Tensor, Tensor, Tensor]:
    """The leading `rank` singular triplets that a draw W ~ N(0, std²) of shape (out, in) would have.

    The singular vectors of a Gaussian matrix are uniformly distributed and independent of its singular values, so they
    are bases of two thin draws; the singular values are the quantiles of their limit law (Marchenko–Pastur), from which
    those of one large draw hardly differ. At 1536 × 4096 and rank 384 this takes about a tenth of the time of
    decomposing a draw.

    Returns:
        P (out, rank) and Q (in, rank) with orthonormal columns, σ (rank) in descending order; torch's default dtype.
    """
    p, q = _basis(out_features, rank), _basis(in_features, rank)
    shorter, longer = sorted((out_features, in_features))
    sigma = std * longer**0.5 * _limit(shorter, longer)[:rank]
    return p, sigma.to(p), q


def _basis(rows: int, rank: int) -> Tensor:
    draw = torch.randn(rows, rank)
    return draw if draw.is_meta else orthonormalize(draw)[0]


@cache
def _limit(n: int, m: int) -> Tensor:
    """Quantiles of the singular values of an (m, n) Gaussian matrix over √m, the n of them in descending order.

    With γ = n/m their density is √((b − s²)(s² − a)) / (π γ s) between √a = 1 − √γ and √b = 1 + √γ.
    """
    ratio = (n / m) ** 0.5
    edges = torch.linspace(1 - ratio, 1 + ratio, GRID + 1, dtype=torch.float64, device="cpu")
    s = (edges[1:] + edges[:-1]) / 2
    density = (((1 + ratio) ** 2 - s**2) * (s**2 - (1 - ratio) ** 2)).clamp_min(0).sqrt() / s
    share = density.cumsum(0) / density.sum()
    wanted = 1 - (torch.arange(n, dtype=torch.float64, device="cpu") + 0.5) / n
    return s[torch.searchsorted(share, wanted).clamp_max(GRID - 1)]
