"""What the factorized projections share: their rank, and that they are made of singular triplets."""

from abc import abstractmethod

from torch import Tensor

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
