"""Cross-entropy of next tokens straight from the hidden states."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LossCallable = Callable[[Tensor, Tensor, Tensor, Tensor], Any]
"""(hidden_BTD, head_VD, targets_BT, tokens_BT) -> a 0-d tensor. In YAML the path of a function or a class."""

CHUNK_LOGITS = 2**26
"""Logits held at once: 2²⁶ float32 values are 256 MiB."""


def next_token_loss(hidden: Tensor, head_VD: Tensor, targets: Tensor) -> Tensor:
    """Mean −log softmax(h Eᵀ)[target] in nats, as a float32 scalar (float64 for float64 inputs).

    Tokens are taken in chunks of at most `CHUNK_LOGITS` logits, and the gradient of a chunk's logits, softmax − onehot,
    is turned into those of h and E while the chunk is there: neither all logits nor their float32 copy ever exist at
    once, and nothing is computed again in the backward pass. Products are in autocast's dtype, the softmax in float32.
    (`torch.nn.functional.linear_cross_entropy` saves the same memory, but with bfloat16 inputs torch 2.15 returns a
    loss rounded to bfloat16: 10.19 where float32 gives 10.50.)

    Args:
        hidden: (…, width), any floating dtype.
        head_VD: (vocabulary, width).
        targets: (…), int64.
    """
    hidden_ND, targets_N = hidden.flatten(0, -2), targets.flatten()
    with_gradients = torch.is_grad_enabled() and (hidden_ND.requires_grad or head_VD.requires_grad)
    return _NextTokenLoss.apply(hidden_ND, head_VD, targets_N, with_gradients)


@torch.no_grad()
def losses_by_position(hidden_BTD: Tensor, head_VD: Tensor, targets_BT: Tensor, _: Tensor | None = None) -> Tensor:
    """Mean next-token loss in nats at each position, over the rows: (T,), of the dtype that `next_token_loss` has.

    A `LossCallable` without gradients; its mean is the next-token loss. Logits are held in chunks as there.
    """
    device = hidden_BTD.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_BTD.dtype
    hidden_ND, head, targets_N = hidden_BTD.flatten(0, 1).to(dtype), head_VD.to(dtype), targets_BT.flatten()
    chunk = max(1, CHUNK_LOGITS // len(head))
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    losses_N = torch.empty(len(targets_N), dtype=exact, device=hidden_ND.device)
    with torch.autocast(device, enabled=False):
        for start in range(0, len(targets_N), chunk):
            rows = slice(start, start + chunk)
            logits = F.linear(hidden_ND[rows], head).to(exact)
            losses_N[rows] = F.cross_entropy(logits, targets_N[rows], reduction="none")
    return losses_N.view_as(targets_BT).mean(dim=0)


class _NextTokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, with_gradients: bool) -> Tensor:
        device = hidden_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype
        hidden, head = hidden_ND.to(dtype), head_VD.to(dtype)
        chunk = max(1, CHUNK_LOGITS // len(head))
        total = torch.zeros((), dtype=torch.float64 if dtype == torch.float64 else torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if with_gradients else None
        grad_head: Tensor | None = None
        with torch.autocast(device, enabled=False):
            for start in range(0, len(hidden), chunk):
                rows = slice(start, start + chunk)
                targets = targets_N[rows, None]
                log_p = torch.log_softmax(F.linear(hidden[rows], head).to(total.dtype), dim=-1)
                total -= log_p.gather(1, targets).sum()
                if grad_hidden is None:
                    continue
                error = log_p.exp_().scatter_add_(1, targets, log_p.new_full(targets.shape, -1.0)).to(dtype)
                torch.mm(error, head, out=grad_hidden[rows])
                part = error.mT @ hidden[rows]
                # That of a single chunk stays in the products' dtype, half the size, until the backward pass.
                grad_head = part if grad_head is None else grad_head.to(total.dtype).add_(part)
        if grad_hidden is not None:
            ctx.save_for_backward(grad_hidden, grad_head)
        ctx.dtypes = hidden_ND.dtype, head_VD.dtype
        return total / len(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_head = ctx.saved_tensors
        scale = grad_loss / len(grad_hidden)
        return _scaled(grad_hidden, scale, ctx.dtypes[0]), _scaled(grad_head, scale, ctx.dtypes[1]), None, None


def _scaled(gradient: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    # The saved gradient itself must stay as it is: the graph may be retained.
    return gradient * scale if gradient.dtype == dtype else gradient.to(dtype).mul_(scale)
