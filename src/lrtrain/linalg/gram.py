"""Small products of tall matrices: XᵀY and XᵀX."""

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from lrtrain.linalg.row_sharded import all_reduce, all_reduce_symmetric, local, process_groups


def as_float(x: Tensor) -> Tensor:
    """x in the dtype of the computation: float64 for a float64 input, else float32."""
    return x if x.dtype == torch.float64 else x.float()


@torch.no_grad()
def inner(x: Tensor, y: Tensor) -> Tensor:
    """XᵀY of matrices X (…, m, k) and Y (…, m, r), whole or with rows sharded in the same way.

    Returns:
        (…, k, r), a plain tensor that every process holds whole; float32 (float64 for float64 inputs).
    """
    (product,) = all_reduce([as_float(local(x)).mT @ as_float(local(y))], process_groups(x))
    return product


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
