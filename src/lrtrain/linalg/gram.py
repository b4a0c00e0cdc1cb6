"""Small products of tall matrices: XᵀY and XᵀX."""

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from lrtrain.linalg.cpu import transposed_product
from lrtrain.linalg.row_sharded import all_reduce, all_reduce_symmetric, local, process_groups

WIDE = 256
"""Columns from which a bfloat16 Gram matrix costs less in blocks."""


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


def gram_of(y: Tensor) -> Tensor:
    """YᵀY (n, r, r) of the local rows Y (n, m, r), in Y's dtype."""
    if y.dtype == torch.bfloat16 and y.device.type == "cpu":
        return _symmetric(y)
    return transposed_product(y, y)


def _symmetric(y: Tensor) -> Tensor:
    """Gram matrices one by one (batched, the turned factors would be copied), wide ones from three of four blocks."""
    n, _, r = y.shape
    grams, half = y.new_empty(n, r, r), r // 2 if r >= WIDE else 0
    for rows, gram in zip(y, grams, strict=True):
        gram[half:, half:] = rows[:, half:].mT @ rows[:, half:]
        if half:
            gram[:half] = rows[:, :half].mT @ rows
            gram[half:, :half] = gram[:half, half:].mT
    return grams
