"""What the decoder, the optimizers and the constraints may know of a projection."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

from torch import Tensor, nn

LinearCallable = Callable[[int, int], nn.Module]
"""(in_features, out_features) -> a projection. In YAML a class path with the remaining arguments."""


class Projection(nn.Module, ABC):
    """A linear map y = W x without bias, however W is written.

    A new parameterization is one file with one subclass; its structure is stated as data (`factor_pairs`,
    `orthonormal`, `spectral_triples`), so that no optimizer and no constraint has to know the class.
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

    def spectral_triples(self) -> list[tuple[nn.Parameter, nn.Parameter, nn.Parameter]]:
        """Triples (U, s, V) with U (in, r), s (r), V (out, r) whose product V diag(s) Uᵀ is the weight."""
        return []

    @property
    @abstractmethod
    def flops_per_token(self) -> int:
        """Forward FLOPs of one token, a multiply-add counted as two."""

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"
