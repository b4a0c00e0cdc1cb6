"""Parts as a researcher writes them beside a YAML: named there by class path, known to nothing in the package."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrtrain.nn import Decoder, LowRankLinear, next_token_loss


class CoLA(nn.Module):
    """y = A silu(Bᵀ x): neither linear nor a subclass of ours, and it states nothing."""

    def __init__(self, in_features: int, out_features: int, rank_ratio: float = 0.25) -> None:
        super().__init__()
        rank = max(1, round(rank_ratio * in_features))
        self.A = nn.Parameter(torch.randn(out_features, rank) * rank**-0.5)
        self.B = nn.Parameter(torch.randn(in_features, rank) * in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x @ self.B) @ self.A.mT


class Nested(nn.Module):
    """Its parameters lie in modules of its own, one of them a projection."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, 6, bias=False)
        self.up = LowRankLinear(6, out_features, rank=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.linear(x).relu())


class Narrow(CoLA):
    """Of another output width than it was asked for."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., 1:]


class Reading(CoLA):
    """Reads a number, which there is not without data."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * x.sum().item()


class Scale(nn.Module):
    """Has no product that could be counted."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(out_features))

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :1] * self.scale


class ZLoss:
    """The next-token loss and a share of the mean squared log of the softmax's denominator (arXiv 2204.02311)."""

    def __init__(self, weight: float = 0.1) -> None:
        self.weight = weight

    def __call__(self, hidden_BTD: Tensor, head_VD: Tensor, targets_BT: Tensor, tokens_BT: Tensor) -> Tensor:
        z = F.linear(hidden_BTD, head_VD).float().logsumexp(-1).square().mean()
        return next_token_loss(hidden_BTD, head_VD, targets_BT) + self.weight * z


class Teacher(nn.Module):
    """Holds weights that training leaves alone."""

    def __init__(self, vocab_size: int, trainable: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)
        self.requires_grad_(trainable)

    def forward(self, hidden_BTD: Tensor, head_VD: Tensor, targets_BT: Tensor, tokens_BT: Tensor) -> Tensor:
        theirs = self.table(tokens_BT).softmax(-1)
        ours = F.linear(hidden_BTD, head_VD).log_softmax(-1)
        return -(theirs * ours).sum(-1).mean()


def reading_loss(hidden_BTD: Tensor, head_VD: Tensor, targets_BT: Tensor, tokens_BT: Tensor) -> Tensor:
    """Reads a number, which there is not without data."""
    return hidden_BTD.sum() * head_VD.mean().item()


class Scaled(Decoder):
    """A decoder with one more argument."""

    def __init__(self, *args: Any, hidden_scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hidden_scale = hidden_scale

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.hidden_scale * super().forward(*args, **kwargs)


class Unlike(Decoder):
    """A decoder whose last block differs from the others."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.blocks[-1].mlp_norm = nn.Identity()


class Foreign(Decoder):
    """A decoder whose last block is of another class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.blocks[-1] = Around(self.blocks[-1])


class Around(nn.Module):
    """A block inside a module."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.block(*args, **kwargs)


def square(layer: nn.Module) -> dict[str, float]:
    """The sum of the squares of a projection's parameters."""
    return {"square": float(sum(p.square().sum() for p in layer.parameters()))}


def clashing(layer: nn.Module) -> dict[str, float]:
    return {"weight_norm": 1.0}


class Empty(nn.Module):
    """Trains nothing."""

    flops_per_token = 0

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(out_features, in_features))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.mT


class Uncounted(Decoder):
    """A decoder with a weight that is neither a projection nor a norm, and of which its FLOPs know nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.extra = nn.Linear(self.width, self.width, bias=False)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.extra(super().forward(*args, **kwargs))


class Extended(Uncounted):
    """The same, counted."""

    def flops_per_token(self, tokens: int) -> int:
        return super().flops_per_token(tokens) + 2 * self.width**2
