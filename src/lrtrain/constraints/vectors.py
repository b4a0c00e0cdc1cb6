"""Vectors of equal length, whole or sharded over processes, as one stacked tensor, and back."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def stack_whole(vectors: Sequence[Tensor]) -> Tensor:
    """Vectors (k) as a tensor (n, k) that every process holds whole, with one gathering for all."""
    stacked = torch.stack(list(vectors))
    return stacked.full_tensor() if isinstance(stacked, DTensor) else stacked


def write_whole(vectors: Sequence[Tensor], values: Tensor) -> None:
    """Writes values (n, k), which every process holds whole, into vectors (k); nothing is communicated."""
    for vector, value in zip(vectors, values.unbind(), strict=True):
        if isinstance(vector, DTensor):
            value = distribute_tensor(value, vector.device_mesh, vector.placements, src_data_rank=None)
        vector.copy_(value)
