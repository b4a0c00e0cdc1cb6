"""What the factorized projections share: their rank, and how they come from a dense weight."""

from abc import abstractmethod
from typing import Self

import torch
from torch import Tensor

from lrtrain.linalg import rank_for_energy, truncated_svd
from lrtrain.nn.projection import Projection


class FactorizedProjection(Projection):
    """A weight of low rank; a subclass says how it keeps the triplets of W = P diag(σ) Qᵀ.

    Args:
        in_features: Input width.
        out_features: Output width.
        rank: Rank r, 1 … min(in, out); or give rank_ratio.
        rank_ratio: r = round(rank_ratio · in_features), at most min(in, out); 0 < rank_ratio ≤ 1.

    Raises:
        ValueError: rank or rank_ratio out of range, or not exactly one of them given.
    """

    def __init__(
        self, in_features: int, out_features: int, rank: int | None = None, rank_ratio: float | None = None
    ) -> None:
        super().__init__(in_features, out_features)
        self.rank = resolve_rank(in_features, out_features, rank, rank_ratio)

    @abstractmethod
    def set_triplets(self, p: Tensor, sigma: Tensor, q: Tensor) -> None:
        """Makes the weight P diag(σ) Qᵀ, from P (out, r), σ (r) and Q (in, r)."""

    @classmethod
    def from_dense(cls, weight: Tensor, rank: int | None = None, energy: float | None = None) -> Self:
        """The best approximation of a dense weight (out, in) of any floating dtype, at a given rank or share of Σσ².

        Raises:
            ValueError: NaN or an infinity in the weight; rank or energy out of range, or not exactly one of them given.
        """
        weight = weight.detach()
        if not weight.is_meta and not weight.isfinite().all():
            raise ValueError(f"from_dense: the weight of shape {tuple(weight.shape)} holds NaN or infinite numbers")
        if weight.dtype != torch.float64:
            weight = weight.float()  # a half's triplets would be rounded before they become parameters
        with torch.device("meta"):  # the random initialization would be thrown away
            layer = cls(weight.shape[1], weight.shape[0], rank=rank_of_dense(weight, rank, energy))
        layer.to_empty(device=weight.device)
        layer.set_triplets(*truncated_svd(weight, layer.rank))
        return layer

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}"


def resolve_rank(in_features: int, out_features: int, rank: int | None, rank_ratio: float | None) -> int:
    """The rank of a factorized (out, in) weight: `rank`, or round(rank_ratio · in_features), at most min(in, out).

    Raises:
        ValueError: not exactly one of the two is given, or a value is out of range.
    """
    if (rank is None) == (rank_ratio is None):
        raise ValueError(f"give either rank or rank_ratio, not both or neither: rank={rank}, rank_ratio={rank_ratio}")
    smaller = min(in_features, out_features)
    if rank is not None:
        if not 1 <= rank <= smaller:
            raise ValueError(f"rank must be between 1 and min(in, out) = {smaller}, got {rank}")
        return rank
    assert rank_ratio is not None
    if not 0 < rank_ratio <= 1:
        raise ValueError(f"rank_ratio must be in (0, 1], got {rank_ratio}")
    return min(max(round(rank_ratio * in_features), 1), smaller)


def rank_of_dense(weight: Tensor, rank: int | None, energy: float | None) -> int:
    """The rank that `from_dense` uses: `rank`, or the smallest that holds the share `energy` of Σσ²."""
    if (rank is None) == (energy is None):
        raise ValueError(f"give either rank or energy, not both or neither: rank={rank}, energy={energy}")
    if rank is not None:
        return resolve_rank(weight.shape[1], weight.shape[0], rank, None)
    assert energy is not None
    if not 0 < energy <= 1:
        raise ValueError(f"energy must be in (0, 1], got {energy}")
    return rank_for_energy(weight, energy)
