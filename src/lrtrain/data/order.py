"""The order of a split's blocks, and which of them each process reads in which batch."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np


def shuffled(sizes: Sequence[int], seed: int, position: int = 0) -> Iterator[list[int]]:
    """The endless stream of blocks that training reads, a chunk at a time: each block once in every epoch.

    Every epoch permutes the chunks, and the blocks within each chunk. The stream depends on nothing else: neither on
    the number of processes or workers nor on the batch size.

    Args:
        sizes: Blocks of each chunk; blocks are numbered through all chunks.
        seed: Chooses the permutations.
        position: How many blocks of the stream to pass over.
    """
    first = np.cumsum([0, *sizes])
    begun, passed = divmod(position, int(first[-1]))
    for epoch in itertools.count(begun):
        for chunk in _permutation(len(sizes), seed, epoch):
            if passed < sizes[chunk]:
                yield (first[chunk] + _permutation(sizes[chunk], seed, epoch, 1 + int(chunk)))[passed:].tolist()
            passed = max(0, passed - sizes[chunk])


def dealt(blocks: Iterator[int], batch_size: int, rank: int, processes: int) -> Iterator[list[int]]:
    """The batches of one process: of every `batch_size` · `processes` blocks in a row, it takes its `batch_size`.

    Where the blocks end, batches are shorter, and empty for a process that gets none; all get equally many.
    """
    while together := list(itertools.islice(blocks, batch_size * processes)):
        yield together[rank * batch_size : (rank + 1) * batch_size]


def _permutation(length: int, *seed: int) -> np.ndarray:
    # RandomState: its numbers are the same in every version of numpy.
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed))).permutation(length)
