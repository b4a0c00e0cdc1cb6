"""A projection that is not linear: a nonlinearity between the two factors."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MyProjection(nn.Module):
    """y = A silu(Bᵀ x) (CoLA, arXiv 2502.10940), with A of shape (out, r) and B of shape (in, r).

    Any module that is made from (in_features, out_features) can be a projection. This one has no weight matrix W, so
    it states no `factor_pairs` and no `materialize`: what measures W leaves it out, in a line that says so.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        rank_ratio: r / in_features.
    """

    def __init__(self, in_features: int, out_features: int, rank_ratio: float = 0.25) -> None:
        super().__init__()
        rank = max(1, round(rank_ratio * in_features))
        self.A = nn.Parameter(torch.randn(out_features, rank) * rank**-0.5)
        self.B = nn.Parameter(torch.randn(in_features, rank) * in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x @ self.B) @ self.A.mT

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        """What the recipe's `initial_scale` does to it; without it the projection begins as drawn above."""
        self.A.mul_(factor)

    @property
    def flops_per_token(self) -> int:
        """Of the forward pass; without it the matrix products are counted."""
        return 2 * (self.A.numel() + self.B.numel())
