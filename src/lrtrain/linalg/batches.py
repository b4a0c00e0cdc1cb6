"""A sequence of matrices as batches of equal shape."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from lrtrain.linalg.gram import as_float, gram_of
from lrtrain.linalg.row_sharded import all_reduce, all_reduce_symmetric, local, process_groups, with_local

PIECE = 1 << 21
"""Numbers that a CPU handles at once: few enough that their memory is reused instead of mapped anew."""


MODERATE = (1e-12, 1e15)
"""‖X‖_F between which neither XᵀX nor what it needs of small entries leaves float32's range."""


def pieces(matrices: Sequence[Tensor], most: int = PIECE) -> list[list[int]]:
    """Which matrices to pass to one call, as lists of indices.

    On a CPU as many of one shape as have `most` numbers, or one; on a GPU, or where rows are sharded, all of them: one
    launch, or one all-reduce, then serves all.
    """
    if not matrices:
        return []
    if matrices[0].device.type != "cpu" or process_groups(matrices[0]):
        return [list(range(len(matrices)))]
    found: list[list[int]] = []
    count = 0
    for index in sorted(range(len(matrices)), key=lambda i: tuple(matrices[i].shape)):
        count += matrices[index].numel()
        if not found or count > most or matrices[index].shape != matrices[found[-1][0]].shape:
            found.append([])
            count = matrices[index].numel()
        found[-1].append(index)
    return found


class Batches:
    """The local rows of matrices, those of equal shape stacked to (n, m, r), and the way back.

    Args:
        matrices: Matrices (m, r) or batches (…, m, r), plain or row-sharded DTensors; all sharded over the same groups.

    Attributes:
        stacks: Tensors (n, m, r) of one shape each, float32 (float64 for float64 input); on a CPU only as many
            matrices in one as are best handled at once. A matrix that is alone in its stack is not copied, so write
            into a stack only after cloning it.
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
        self._places = [part for group in places.values() for part in self._parts(group)]
        self.rows = [self.matrices[p[0]].shape[-2] for p in self._places]
        self.stacks = [_stack([local(self.matrices[i]) for i in p]) for p in self._places]

    def _parts(self, group: list[int]) -> list[list[int]]:
        """Matrices of one shape, as they are to be stacked."""
        first = self.matrices[group[0]]
        size = max(1, PIECE // max(1, first.numel())) if first.device.type == "cpu" else len(group)
        return [group[start : start + size] for start in range(0, len(group), size)]

    def scaled(self, indices: Sequence[int] | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """The stacks over each matrix's largest entry, and those entries (n); of all or of some stacks.

        Squares below 1e-38 or above 1e38 leave float32's range. With rows spread over processes, one all-reduce. On a
        CPU, where reading a number waits for nothing, a stack that is well within the range stays as it is, over 1.
        """
        stacks = self.stacks if indices is None else [self.stacks[i] for i in indices]
        if self._readable():
            found = [_within_range(y) for y in stacks]
            return [y for y, _ in found], [largest for _, largest in found]
        largest = all_reduce([_largest_entry(y) for y in stacks], self.groups, dist.ReduceOp.MAX)
        return [_over(y, most) for y, most in zip(stacks, largest, strict=True)], largest

    def scaled_grams(
        self, indices: Sequence[int] | None = None, dtype: torch.dtype | None = None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """What `scaled` returns, and the Gram matrices (n, r, r) of those stacks over all processes.

        Where reading a number waits for nothing, the Gram matrices themselves tell which stacks need scaling.

        Args:
            indices: Of the stacks, all by default.
            dtype: Of the stacks and of the products, their own by default; Gram matrices are float32 at least.
        """
        if not self._readable():
            stacks, largest = self.scaled(indices)
            stacks = [y.to(dtype or y.dtype) for y in stacks]
            return stacks, largest, all_reduce_symmetric([as_float(gram_of(y)) for y in stacks], self.groups)
        raw = self.stacks if indices is None else [self.stacks[i] for i in indices]
        found = [_gram_within_range(y, dtype or y.dtype) for y in raw]
        return [y for y, _, _ in found], [largest for _, largest, _ in found], [gram for _, _, gram in found]

    def _readable(self) -> bool:
        """Whether the numbers of the stacks can be read without waiting."""
        return not self.groups and bool(self.stacks) and self.stacks[0].device.type == "cpu"

    def members(self, index: int) -> list[Tensor]:
        """The matrices of a stack."""
        return [self.matrices[place] for place in self._places[index]]

    def whole(self, index: int, number: int) -> Tensor:
        """All rows (m, r) of matrix `number` of a stack; gathered where they are spread."""
        if not self.groups:
            return self.stacks[index][number]
        return as_float(self._sharded(index, number).full_tensor())

    def rows_of(self, whole: Tensor, index: int, number: int) -> Tensor:
        """The counterpart of `whole`: this process's rows of a result (m, …) that every process holds whole."""
        if not self.groups:
            return whole
        like = self._sharded(index, number)
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None).to_local()

    def _sharded(self, index: int, number: int) -> DTensor:
        matrix = self.members(index)[number]
        assert isinstance(matrix, DTensor)
        return matrix

    def gather(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Small tensors (…, k), one for each matrix, stacked as the matrices are: (n, k)."""
        return [torch.stack([vectors[i] for i in p]).flatten(0, -2) for p in self._places]

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


def _stack(rows: Sequence[Tensor]) -> Tensor:
    """(m, r) or (…, m, r) each, to one (n, m, r) in the dtype of the computation."""
    stacked = torch.stack(list(rows)) if len(rows) > 1 else rows[0].unsqueeze(0)
    return as_float(stacked.flatten(0, -3))


def _gram_within_range(y: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Y (n, m, r) in a dtype, ones (n) and YᵀY; where a norm is not moderate, Y over its largest entries, and they."""
    rows = y.to(dtype)
    gram = as_float(gram_of(rows))
    squares = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    if all(MODERATE[0] ** 2 < square < MODERATE[1] ** 2 for square in squares.tolist()):
        return rows, torch.ones_like(squares), gram
    largest = _largest_entry(y)
    rows = _over(y, largest).to(dtype)
    return rows, largest, as_float(gram_of(rows))


def _within_range(y: Tensor) -> tuple[Tensor, Tensor]:
    """Y (n, m, r) and ones (n) where the norm of each matrix is moderate, else Y over its largest entries, and they."""
    norms = torch.linalg.vector_norm(y, dim=(-2, -1))
    if all(MODERATE[0] < norm < MODERATE[1] for norm in norms.tolist()):
        return y, torch.ones_like(norms)
    largest = _largest_entry(y)
    return _over(y, largest), largest


def _over(y: Tensor, largest: Tensor) -> Tensor:
    return y / largest.clamp_min(torch.finfo(y.dtype).tiny)[:, None, None]


def _largest_entry(y: Tensor) -> Tensor:
    return y.abs().amax((-2, -1)) if y.numel() else y.new_zeros(y.shape[0])
