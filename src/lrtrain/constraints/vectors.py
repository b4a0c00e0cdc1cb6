"""Vectors of equal length, whole or sharded over processes, as one stacked tensor, and back."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lrtrain.linalg import gathered, spread


def stack_whole(vectors: Sequence[Tensor]) -> Tensor:
    """Vectors (k) as a tensor (n, k) that every process holds whole, with one gathering for all."""
    return gathered(torch.stack(list(vectors)))


def write_whole(vectors: Sequence[Tensor], values: Tensor) -> None:
    """Writes values (n, k), which every process holds whole, into vectors (k); nothing is communicated."""
    for vector, value in zip(vectors, values.unbind(), strict=True):
        vector.copy_(spread(value, vector))
