"""The best low-rank approximation of a dense matrix."""

import torch
from torch import Tensor


@torch.no_grad()
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
    squares = torch.linalg.svdvals(weight.detach().double()) ** 2
    share = squares.cumsum(0) / squares.sum()
    return min(int((share < energy - 1e-12).sum()) + 1, len(squares))
