"""The spectral projection W = V diag(s) Uᵀ (SCT)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from lrtrain.linalg import gaussian_svd
from lrtrain.nn.factorized import FactorizedProjection


class SpectralLinear(FactorizedProjection):
    """y = ((x U) ⊙ s) Vᵀ with U (in, k) and V (out, k) of orthonormal columns and s (k), so W = V diag(s) Uᵀ.

    The columns stay orthonormal only with a retraction after each step (`constraints.StiefelRetraction`, or
    `constraints.FunctionPreservingRetraction`, which leaves W as it is).

    Args:
        in_features: Input width.
        out_features: Output width.
        rank: Rank k, 1 … min(in, out); or give rank_ratio.
        rank_ratio: k = round(rank_ratio · in_features), at most min(in, out); 0 < rank_ratio ≤ 1.
        init: `svd` takes the leading triplets of a dense draw of standard deviation 1/√in_features; `paper` takes
            random bases and s = √(2·out/(in·k)), which is smaller than variance-preserving by √in.

    Raises:
        ValueError: rank or rank_ratio out of range, or not exactly one of them given.

    Source: SCT, arXiv 2604.00733.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int | None = None,
        rank_ratio: float | None = None,
        init: Literal["svd", "paper"] = "svd",
    ) -> None:
        super().__init__(in_features, out_features, rank, rank_ratio)
        self.own_scale = init == "paper"
        self.U = nn.Parameter(torch.empty(in_features, self.rank))
        self.s = nn.Parameter(torch.empty(self.rank))
        self.V = nn.Parameter(torch.empty(out_features, self.rank))
        p, sigma, q = gaussian_svd(out_features, in_features, self.rank, in_features**-0.5)
        if init == "paper":
            sigma = torch.full_like(sigma, math.sqrt(2 * out_features / (in_features * self.rank)))
        self.set_triplets(p, sigma, q)

    @torch.no_grad()
    def set_triplets(self, p: Tensor, sigma: Tensor, q: Tensor) -> None:
        self.V.copy_(p)
        self.s.copy_(sigma)
        self.U.copy_(q)

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        self.s.mul_(factor)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x @ self.U
        return (hidden * self.s.to(hidden.dtype)) @ self.V.mT

    def materialize(self) -> Tensor:
        return (self.V * self.s) @ self.U.mT

    def orthonormal(self) -> list[nn.Parameter]:
        return [self.U, self.V]

    def spectral_triples(self) -> list[tuple[nn.Parameter, nn.Parameter, nn.Parameter]]:
        return [(self.U, self.s, self.V)]

    @property
    def flops_per_token(self) -> int:
        return 2 * self.rank * (self.in_features + self.out_features) + self.rank
