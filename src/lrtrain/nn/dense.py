"""The dense projection: the baseline that the factorized ones are compared with."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrtrain.nn.projection import Projection


class DenseLinear(Projection):
    """y = W x with W (out, in).

    Args:
        in_features: Input width.
        out_features: Output width.
        std: Standard deviation of the normal initialization; 1/√in_features when null, which keeps the variance.
    """

    def __init__(self, in_features: int, out_features: int, std: float | None = None) -> None:
        super().__init__(in_features, out_features)
        self.weight = nn.Parameter(dense_draw(in_features, out_features, std))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def materialize(self) -> Tensor:
        return self.weight

    @classmethod
    def from_dense(cls, weight: Tensor, rank: int | None = None, energy: float | None = None) -> Self:
        """A dense copy; rank and energy say nothing about a dense weight and are refused."""
        if rank is not None or energy is not None:
            raise ValueError("DenseLinear keeps the whole weight: leave rank and energy out")
        with torch.device("meta"):  # the random initialization would be thrown away
            layer = cls(weight.shape[1], weight.shape[0])
        layer.to_empty(device=weight.device)
        with torch.no_grad():
            layer.weight.copy_(weight)
        return layer

    @property
    def flops_per_token(self) -> int:
        return 2 * self.in_features * self.out_features


def dense_draw(in_features: int, out_features: int, std: float | None = None) -> Tensor:
    """A fresh dense weight (out, in) from N(0, std²); std is 1/√in_features when None."""
    return torch.randn(out_features, in_features) * (in_features**-0.5 if std is None else std)
