"""The 70B-class spectral step as one would first write it; what `seventy_b` is measured against.

Written from the facts of the paper (SCT, arXiv 2604.00733): 80 blocks of RMSNorm, q, k, v, o (all added, no attention),
RMSNorm, SwiGLU; AdamW with torch's defaults over all gradients, then QR and sign correction, one matrix at a time.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class SpectralLinear(nn.Module):
    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.U = nn.Parameter(torch.linalg.qr(torch.randn(in_features, rank))[0].contiguous())
        self.V = nn.Parameter(torch.linalg.qr(torch.randn(out_features, rank))[0].contiguous())
        self.s = nn.Parameter(torch.full((rank,), math.sqrt(2 * out_features / (in_features * rank))))

    def forward(self, x: Tensor) -> Tensor:
        return ((x @ self.U) * self.s) @ self.V.T


class Block(nn.Module):
    def __init__(self, width: int, ffn_width: int, rank: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(width)
        self.q, self.k, self.v, self.o = (SpectralLinear(width, width, rank) for _ in range(4))
        self.mlp_norm = RMSNorm(width)
        self.gate, self.up = (SpectralLinear(width, ffn_width, rank) for _ in range(2))
        self.down = SpectralLinear(ffn_width, width, rank)

    def forward(self, x: Tensor) -> Tensor:
        h = self.attention_norm(x)
        x = x + self.q(h) + self.k(h) + self.v(h) + self.o(h)
        h = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


@torch.no_grad()
def retract(model: nn.Module) -> None:
    """U, V ← Q · sign(diag R), matrix by matrix."""
    for module in model.modules():
        if isinstance(module, SpectralLinear):
            for basis in (module.U, module.V):
                q, r = torch.linalg.qr(basis)
                basis.copy_(q * torch.where(r.diagonal() < 0, -1.0, 1.0))
