"""The low-rank projection W = A Bᵀ."""

from typing import Self

import torch
from torch import Tensor, nn

from lrtrain.linalg import gaussian_svd, truncated_svd
from lrtrain.nn.projection import Projection, rank_of_dense, resolve_rank


class LowRankLinear(Projection):
    """y = (x B) Aᵀ with A (out, r) and B (in, r), so W = A Bᵀ.

    Spectral initialisation: the truncated SVD of a dense draw, W ≈ P_r Σ_r Q_rᵀ, is split evenly, A = P_r √Σ_r and
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
        super().__init__(in_features, out_features)
        self.rank = resolve_rank(in_features, out_features, rank, rank_ratio)
        self.A = nn.Parameter(torch.empty(out_features, self.rank))
        self.B = nn.Parameter(torch.empty(in_features, self.rank))
        std = in_features**-0.5 if std is None else std
        self._set(*gaussian_svd(out_features, in_features, self.rank, std))

    @torch.no_grad()
    def _set(self, p: Tensor, sigma: Tensor, q: Tensor) -> None:
        root = sigma.sqrt()
        self.A.copy_(p * root)
        self.B.copy_(q * root)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.B @ self.A.mT

    def materialize(self) -> Tensor:
        return self.A @ self.B.mT

    @classmethod
    def from_dense(cls, weight: Tensor, rank: int | None = None, energy: float | None = None) -> Self:
        with torch.device("meta"):  # the random initialisation would be thrown away
            layer = cls(weight.shape[1], weight.shape[0], rank=rank_of_dense(weight, rank, energy))
        layer.to_empty(device=weight.device)
        layer._set(*truncated_svd(weight.detach(), layer.rank))
        return layer

    def factor_pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return [(self.A, self.B)]

    @property
    def flops_per_token(self) -> int:
        return 2 * self.rank * (self.in_features + self.out_features)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}"
