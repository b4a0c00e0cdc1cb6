"""The dense projection: the baseline that the factorized ones are compared with."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrtrain.nn.projection import Projection, initial_std


class DenseLinear(Projection):
    """y = W x with W (out, in).

    Args:
        in_features: Input width.
        out_features: Output width.
        std: Standard deviation of the normal initialization; 1/√in_features when null, which keeps the variance.
    """

    def __init__(self, in_features: int, out_features: int, std: float | None = None) -> None:
        super().__init__(in_features, out_features)
        self.own_scale = std is not None
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * initial_std(std, in_features))

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        self.weight.mul_(factor)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def materialize(self) -> Tensor:
        return self.weight

    @property
    def flops_per_token(self) -> int:
        return 2 * self.in_features * self.out_features
