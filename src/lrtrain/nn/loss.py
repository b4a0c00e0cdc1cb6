"""Cross-entropy of next tokens straight from the hidden states."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 2**26
"""Logits held at once: 2²⁶ float32 values are 256 MiB."""


def next_token_loss(hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Mean −log softmax(h Eᵀ)[target] in nats, as a float32 scalar.

    Tokens are taken in chunks of at most `CHUNK_LOGITS` logits, which the backward pass computes again, so neither all
    logits nor their float32 copy ever exist at once. (`torch.nn.functional.linear_cross_entropy` saves the same memory,
    but with bfloat16 inputs torch 2.15 returns a loss rounded to bfloat16: 10.19 where float32 gives 10.50.)

    Args:
        hidden_ND: (tokens, width), any floating dtype.
        head_VD: (vocabulary, width).
        targets_N: (tokens), int64.
    """
    tokens = len(targets_N)
    per_chunk = max(1, CHUNK_LOGITS // len(head_VD))
    if tokens <= per_chunk:
        return _summed(hidden_ND, head_VD, targets_N) / tokens
    total = hidden_ND.new_zeros((), dtype=torch.float32)
    for hidden, targets in zip(hidden_ND.split(per_chunk), targets_N.split(per_chunk), strict=True):
        total = total + checkpoint(_summed, hidden, head_VD, targets, use_reentrant=False)
    return total / tokens


def _summed(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, head).float(), targets, reduction="sum")
