"""Parts of one's own that are no part of a Llama."""

import torch
from torch import Tensor, nn

from lrtrain.nn import Decoder


class NoWeight(nn.Module):
    """A linear map that does not tell its weight."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.inside = nn.Linear(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x)


class Wrong(NoWeight):
    """One that tells another weight than it computes with."""

    def materialize(self) -> Tensor:
        return 2 * self.inside.weight


class Bent(nn.Module):
    """Factors with a function between them, which is no product."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(torch.randn(out_features, 4)), nn.Parameter(torch.randn(in_features, 4))

    def factor_pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return [(self.A, self.B)]

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.B).relu() @ self.A.mT


class OtherDecoder(Decoder):
    """A subclass may compute anything."""
