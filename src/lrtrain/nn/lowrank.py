"""The low-rank projection W = A Bᵀ."""

import torch
from torch import Tensor, nn

from lrtrain.linalg import gaussian_svd
from lrtrain.nn.factorized import FactorizedProjection
from lrtrain.nn.projection import initial_std


class LowRankLinear(FactorizedProjection):
    """y = (x B) Aᵀ with A (out, r) and B (in, r), so W = A Bᵀ.

    Spectral initialization: the truncated SVD of a dense draw, W ≈ P_r Σ_r Q_rᵀ, is split evenly, A = P_r √Σ_r and
    B = Q_r √Σ_r, so that the product has the dense draw's spectral norm (arXiv 2602.12429, section 3).

    Args:
        in_features: Input width.
        out_features: Output width.
        rank: Rank r, 1 … min(in, out); or give rank_ratio.
        rank_ratio: r = round(rank_ratio · in_features), at most min(in, out); 0 < rank_ratio ≤ 1.
        std: Standard deviation of the dense draw; 1/√in_features when null.

    Raises:
        ValueError: rank or rank_ratio out of range, or not exactly one of them given.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int | None = None,
        rank_ratio: float | None = None,
        std: float | None = None,
    ) -> None:
        super().__init__(in_features, out_features, rank, rank_ratio)
        self.own_scale = std is not None
        self.A = nn.Parameter(torch.empty(out_features, self.rank))
        self.B = nn.Parameter(torch.empty(in_features, self.rank))
        self.set_triplets(*gaussian_svd(out_features, in_features, self.rank, initial_std(std, in_features)))

    @torch.no_grad()
    def set_triplets(self, p: Tensor, sigma: Tensor, q: Tensor) -> None:
        root = sigma.sqrt()
        self.A.copy_(p * root)
        self.B.copy_(q * root)

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        for x in (self.A, self.B):
            x.mul_(factor**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.B @ self.A.mT

    def materialize(self) -> Tensor:
        return self.A @ self.B.mT

    def factor_pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return [(self.A, self.B)]

    @property
    def flops_per_token(self) -> int:
        return 2 * self.rank * (self.in_features + self.out_features)
