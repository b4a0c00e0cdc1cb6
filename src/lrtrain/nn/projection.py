"""What the decoder, the optimizers and the constraints may know of a projection."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

from torch import Tensor, nn

from lrtrain.linalg import rank_for_energy

LinearCallable = Callable[[int, int], nn.Module]
"""(in_features, out_features) -> a projection. In YAML a class path with the remaining arguments."""


class Projection(nn.Module, ABC):
    """A linear map y = W x without bias, however W is written.

    A new parameterisation is one file with one subclass; its structure is stated as data (`factor_pairs`,
    `orthonormal`), so that no optimizer and no constraint has to know the class.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) -> (…, out_features)."""

    @abstractmethod
    def materialize(self) -> Tensor:
        """The dense weight W (out_features, in_features) that this projection stands for."""

    @classmethod
    @abstractmethod
    def from_dense(cls, weight: Tensor, rank: int | None = None, energy: float | None = None) -> Self:
        """The best approximation of a dense weight (out, in), at a given rank or share of Σσ²."""

    def factor_pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Pairs (A, B) with A (out, r) and B (in, r) whose product A Bᵀ is the weight."""
        return []

    def orthonormal(self) -> list[nn.Parameter]:
        """Parameters (features, r) whose columns must stay orthonormal."""
        return []

    @property
    @abstractmethod
    def flops_per_token(self) -> int:
        """Forward FLOPs of one token, a multiply-add counted as two."""

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def resolve_rank(in_features: int, out_features: int, rank: int | None, rank_ratio: float | None) -> int:
    """The rank of a factorised (out, in) weight: `rank`, or round(rank_ratio · in_features), at most min(in, out).

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
