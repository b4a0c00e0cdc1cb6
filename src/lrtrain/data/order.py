"""The order of a split's blocks, whose turn it is among several sources, and which blocks each process reads."""

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction

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


class Quotas:
    """Which of several sources each block of an endless stream is from, so that weights hold at every prefix.

    Of the first n blocks the source of the largest weight w₁ has n · w₁, rounded to the nearest whole number; of those
    that it leaves, the next has its share of what is left of the weights, rounded; and so on. So two sources are never
    more than ½ block off n · w, and K sources never more than ½ + ½ (1 + ½ + … + 1/(K − 1)). It takes no memory of the
    blocks before, and no chance.
    """

    def __init__(self, weights: Sequence[Fraction]) -> None:
        left = sum(weights)
        self._levels: list[tuple[int, int, int]] = []  # source, and its share of what is left as a fraction
        for source in sorted(range(len(weights)), key=lambda source: -weights[source]):
            share = weights[source] / left
            self._levels.append((source, share.numerator, share.denominator))
            left -= weights[source]

    def counts(self, position: int) -> list[int]:
        """How many of the first `position` blocks are from each source."""
        found = [0] * len(self._levels)
        for source, numerator, denominator in self._levels:
            found[source] = (2 * position * numerator + denominator) // (2 * denominator)
            position -= found[source]
        return found

    def source(self, position: int) -> int:
        """The source of the block after the first `position`: the one whose count is one more with it."""
        for source, numerator, denominator in self._levels:
            twice = 2 * position * numerator + denominator
            count = twice // (2 * denominator)
            if (twice + 2 * numerator) // (2 * denominator) > count:
                return source
            position -= count
        raise AssertionError("the last source takes all that is left")


def dealt(blocks: Iterator[int], batch_size: int, rank: int, processes: int) -> Iterator[list[int]]:
    """The batches of one process: of every `batch_size` · `processes` blocks in a row, it takes its `batch_size`.

    Where the blocks end, batches are shorter, and empty for a process that gets none; all get equally many.
    """
    while together := list(itertools.islice(blocks, batch_size * processes)):
        yield together[rank * batch_size : (rank + 1) * batch_size]


def _permutation(length: int, *seed: int) -> np.ndarray:
    # RandomState: its numbers are the same in every version of numpy.
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed))).permutation(length)
