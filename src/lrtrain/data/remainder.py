"""What is left of an epoch that began on another number of processes, and who reads it.

LitData deals an epoch out to ranks and workers, so another number of either, or another batch size, would be another
order. What has been read is a function of the deal and of how many batches each rank took; here it is computed, and
the blocks that are left are dealt out anew, as the chunks of a smaller data set.
"""

import copy
from dataclasses import dataclass, field
from itertools import chain
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from litdata.streaming import Cache
from litdata.streaming.item_loader import Interval
from litdata.streaming.shuffle import Shuffle
from litdata.utilities.env import _DistributedEnv


@dataclass(frozen=True)
class DataGrid:
    """How an epoch, or a part of one, was dealt out, and how many `batches` each process took of its share.

    Equal ones deal the same blocks to the same reader. `workers` is what LitData counts: 1 where the training process
    itself reads. So do lines for the user, as readers.
    """

    processes: int
    nodes: int
    workers: int
    batch_size: int
    batches: int = field(default=0, compare=False)

    def __str__(self) -> str:
        several = "es" if self.processes > 1 else ""
        return f"{self.processes} process{several} (batch_size {self.batch_size}, readers {self.workers})"


class Remainder(Shuffle):
    """LitData's `whole` shuffle, except that `epoch` gives only the blocks that no grid of `begun` has read.

    Each grid was dealt what those before it left. No block comes twice; as ever, what fills no whole batch on every
    process is left out.
    """

    def __init__(self, whole: Shuffle, epoch: int, begun: tuple[DataGrid, ...]) -> None:
        super().__init__(whole.cache, whole.seed, whole.drop_last)
        self.whole = whole
        self.epoch = epoch
        self._chunks: list[Interval] = whole.cache.get_chunk_intervals()
        self._seen: dict[int, np.ndarray] = {}
        for grid in begun:
            self._mark(grid)

    def lost(self, grid: DataGrid) -> int:
        """How many of the blocks left of `epoch` fill no whole batch on every process of `grid`."""
        left, dealt = self._left(), chain.from_iterable(self._deal(grid)[1])
        return sum(end - start for _, start, end, _ in left) - sum(int(end - start) for _, start, end, _ in dealt)

    def get_chunks_and_intervals_per_workers(
        self, distributed_env: _DistributedEnv, num_workers: int, batch_size: int, current_epoch: int
    ) -> Any:
        deal = copy.copy(self.whole)
        if current_epoch == self.epoch:
            # All of a cache that a shuffle asks for.
            left = self._left()
            deal.cache = cast(Cache, SimpleNamespace(_reader=deal.cache._reader, get_chunk_intervals=lambda: left))
        return deal.get_chunks_and_intervals_per_workers(distributed_env, num_workers, batch_size, current_epoch)

    def __call__(self, array: np.ndarray, num_chunks: int, current_epoch: int, chunk_index: int) -> list[int]:
        blocks = self._blocks(chunk_index, array) if current_epoch == self.epoch else array
        return self.whole(blocks, num_chunks, current_epoch, chunk_index)

    def _blocks(self, chunk: int, places: np.ndarray) -> np.ndarray:
        """The blocks that stand in these places of a chunk once those that were read are gone."""
        if chunk not in self._seen:
            return places
        start, _, end, _ = self._chunks[chunk]
        return np.arange(start, end)[~self._seen[chunk]][places - start]

    def _left(self) -> list[Interval]:
        """The chunks' intervals, each as long as what is left of it."""
        read = {chunk: int(seen.sum()) for chunk, seen in self._seen.items()}
        ends = [chunk[2] - read.get(index, 0) for index, chunk in enumerate(self._chunks)]
        return [Interval(chunk[0], chunk[1], end, end) for chunk, end in zip(self._chunks, ends, strict=True)]

    def _deal(self, grid: DataGrid) -> Any:
        """The chunks of each reader of `grid`, and their intervals."""
        env = _DistributedEnv(grid.processes, 0, grid.nodes)
        return self.get_chunks_and_intervals_per_workers(env, grid.workers, grid.batch_size, self.epoch)

    def _mark(self, grid: DataGrid) -> None:
        """Note what `grid` has read; its workers took turns, the first of them first."""
        read: list[tuple[int, np.ndarray]] = []
        for reader, (chunks, intervals) in enumerate(zip(*self._deal(grid), strict=True)):
            turns, more = divmod(grid.batches, grid.workers)
            wanted = (turns + (reader % grid.workers < more)) * grid.batch_size
            for chunk, (_, start, end, _) in zip(map(int, chunks), intervals, strict=True):
                blocks = self._blocks(chunk, np.arange(start, end))
                if wanted < len(blocks):
                    order = self.whole(blocks, len(self._chunks), self.epoch, chunk)
                    blocks = np.asarray(order[:wanted], int)
                read.append((chunk, blocks))
                wanted -= len(blocks)
        # Only now: while a grid is replayed, its chunks must be what they were.
        for chunk, blocks in read:
            start, _, end, _ = self._chunks[chunk]
            self._seen.setdefault(chunk, np.zeros(end - start, bool))[blocks - start] = True
