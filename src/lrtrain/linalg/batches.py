"""A sequence of matrices as batches of equal shape."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor

from lrtrain.linalg.row_sharded import (
    all_reduce,
    all_reduce_symmetric,
    as_float,
    local,
    process_groups,
    with_local,
)


class Batches:
    """The local rows of matrices, those of equal shape stacked to (n, m, r), and the way back.

    Args:
        matrices: Matrices (m, r) or batches (…, m, r), plain or row-sharded DTensors; all sharded over the same groups.

    Attributes:
        rows: m of each stack over all processes.
        groups: The process groups over which the rows are spread.

    Raises:
        ValueError: matrices that are not sharded alike.
    """

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        self.matrices = list(matrices)
        self.groups: tuple[dist.ProcessGroup, ...] = process_groups(matrices[0]) if matrices else ()
        if any(process_groups(x) != self.groups for x in self.matrices):
            raise ValueError("matrices of one call must be sharded over the same processes")
        places: dict[tuple[torch.Size, torch.dtype, torch.device], list[int]] = defaultdict(list)
        for index, x in enumerate(self.matrices):  # by the whole shape, which every process sees alike
            places[x.shape, x.dtype, x.device].append(index)
        self._places = list(places.values())
        self.rows = [self.matrices[p[0]].shape[-2] for p in self._places]

    @cached_property
    def stacks(self) -> list[Tensor]:
        """All stacks (n, m, r), one for each shape."""
        return [self.stack(index) for index in range(len(self._places))]

    def stack(self, index: int) -> Tensor:
        """The matrices of one shape (n, m, r), float32 (float64 for float64 input).

        A matrix that is alone in its stack is not copied, so write into a stack only after cloning it.
        """
        rows = [local(x) for x in self.members(index)]
        stacked = torch.stack(rows) if len(rows) > 1 else rows[0].unsqueeze(0)
        return as_float(stacked.flatten(0, -3))

    def scaled(self, indices: Sequence[int] | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """The stacks over each matrix's largest entry, and those entries (n); of all or of some stacks.

        Squares below 1e-38 or above 1e38 leave float32's range. With rows spread over processes, one all-reduce.
        """
        stacks = [self.stack(i) for i in (range(len(self._places)) if indices is None else indices)]
        largest = all_reduce([_largest_entry(y) for y in stacks], self.groups, dist.ReduceOp.MAX)
        tiny = [torch.finfo(y.dtype).tiny for y in stacks]
        scaled = [y / most.clamp_min(t)[:, None, None] for y, most, t in zip(stacks, largest, tiny, strict=True)]
        return scaled, largest

    def grams(self, stacks: Sequence[Tensor]) -> list[Tensor]:
        """YᵀY (n, r, r) of local rows Y (n, m, r), in float32 at least, summed in one all-reduce."""
        return all_reduce_symmetric([as_float(y.mT @ y) for y in stacks], self.groups)

    def members(self, index: int) -> list[Tensor]:
        """The matrices of a stack."""
        return [self.matrices[place] for place in self._places[index]]

    def gather(self, small: Sequence[Tensor]) -> list[Tensor]:
        """Small tensors, one for each matrix (…, m, r), stacked as the matrices are: (…, k) to (n, k)."""
        depths = [self.matrices[p[0]].ndim - 2 for p in self._places]  # of batch dimensions
        stacked = [torch.stack([small[i] for i in p]) for p in self._places]
        return [each.flatten(0, depth) for each, depth in zip(stacked, depths, strict=True)]

    def scatter(self, results: Sequence[Tensor]) -> list[Tensor]:
        """Results (n, …) for each stack as a list in the order of the matrices, with their batch dimensions."""
        return self._spread(results, lambda piece, _: piece)

    def scatter_rows(self, results: Sequence[Tensor]) -> list[Tensor]:
        """The same for results (n, m, …) with the local rows: in each matrix's dtype, laid out as the matrix is."""
        return self._spread(results, lambda piece, matrix: with_local(piece.to(matrix.dtype), matrix))

    def _spread(self, results: Sequence[Tensor], finish: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        spread: dict[int, Tensor] = {}
        for places, result in zip(self._places, results, strict=True):
            batch = self.matrices[places[0]].shape[:-2]
            pieces = result.reshape(len(places), *batch, *result.shape[1:]).unbind()
            for index, piece in zip(places, pieces, strict=True):
                spread[index] = finish(piece, self.matrices[index])
        return [spread[index] for index in range(len(self.matrices))]


def _largest_entry(y: Tensor) -> Tensor:
    return y.abs().amax((-2, -1)) if y.numel() else y.new_zeros(y.shape[0])
