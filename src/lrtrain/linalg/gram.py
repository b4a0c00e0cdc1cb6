"""Small products of tall matrices: XᵀY, XᵀX, and products of symmetric matrices that commute."""

from collections.abc import Sequence
from itertools import pairwise
from typing import overload

import torch
from torch import Tensor

from lrtrain.linalg.sharded import all_reduce, all_reduce_symmetric, local, process_groups

BLOCK = 64
"""Smallest block of a symmetric product on a CPU, in rows."""


def as_float(x: Tensor) -> Tensor:
    """x in the dtype of the computation: float64 for a float64 input, else float32."""
    return x if x.dtype == torch.float64 else x.float()


@overload
def inner(x: Tensor, y: Tensor) -> Tensor: ...
@overload
def inner(x: Sequence[Tensor], y: Sequence[Tensor]) -> list[Tensor]: ...
@torch.no_grad()
def inner(x: Tensor | Sequence[Tensor], y: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    """XᵀY of matrices X (…, m, k) and Y (…, m, r), whole or with rows sharded in the same way.

    For sequences XᵢᵀYᵢ, with one all-reduce for all of them.

    Returns:
        (…, k, r), a plain tensor that every process holds whole; float32 (float64 for float64 inputs).
    """
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return inner([x], [y])[0]
    products = [as_float(local(a)).mT @ as_float(local(b)) for a, b in zip(x, y, strict=True)]
    return all_reduce(products, process_groups(x[0]) if len(x) else ())


@overload
def gram(x: Tensor) -> Tensor: ...
@overload
def gram(x: Sequence[Tensor]) -> list[Tensor]: ...
@torch.no_grad()
def gram(x: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    """XᵀX as `inner(x, x)`, with half of what that communicates."""
    if isinstance(x, Tensor):
        return gram([x])[0]
    rows = [as_float(local(a)) for a in x]
    return all_reduce_symmetric([a.mT @ a for a in rows], process_groups(x[0]) if len(x) else ())


def symmetric_product(x: Tensor, y: Tensor, plus: Tensor | None = None, alpha: float = 1, beta: float = 1) -> Tensor:
    """α X Y + β Z of symmetric matrices (n, r, r) that commute, as polynomials of one matrix do: X Y is symmetric.

    A CPU computes the blocks on and above the diagonal and mirrors them, about 0.75 times the work at r of a few
    hundred; a GPU has idle units for the other half.
    """
    r = x.shape[-1]
    blocks = min(r // BLOCK, 4) if x.device.type == "cpu" else 1
    plus, beta = (x, 0) if plus is None else (plus, beta)
    if blocks < 2:
        return torch.baddbmm(plus, x, y, alpha=alpha, beta=beta)
    edges = [r * i // blocks for i in range(blocks + 1)]
    product = torch.empty_like(x)
    for start, stop in pairwise(edges):
        upper = product[:, start:stop, start:]
        torch.baddbmm(plus[:, start:stop, start:], x[:, start:stop], y[..., start:], alpha=alpha, beta=beta, out=upper)
        product[:, start:stop, :start] = product[:, :start, start:stop].mT
    return product
