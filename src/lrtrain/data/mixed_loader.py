"""The training stream of several sources: whose turn it is, and each source's own endless stream."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lrtrain.data.loader import BlockLoader
from lrtrain.data.mix import Source
from lrtrain.data.order import Quotas


class MixedLoader(BlockLoader):
    """Batches of one endless stream in which each source has its share at every place (`order.Quotas`).

    Each source's blocks come in the order that they would have alone, epoch after epoch. The stream depends on seed,
    shares and shards alone, so that its place is one number of blocks here, too: it says how far each source is.

    Args:
        sources: The data sets, of one tokenizer.
        block: Tokens of a block.
        batch_size: Blocks in a batch of one process.
        options: As of `BlockLoader`.
    """

    def __init__(self, sources: Sequence[Source], block: int, batch_size: int, **options: Any) -> None:
        super().__init__(f"{sources[0].path}/train", sources[0].manifest, "train", block, batch_size, **options)
        self._alone = [
            BlockLoader(f"{s.path}/train", s.manifest, "train", block, batch_size, **options) for s in sources
        ]
        self._quotas = Quotas([source.share for source in sources])
        self._firsts = [0, *accumulate(loader.blocks for loader in self._alone)]
        each = [loader.identity for loader in self._alone]
        self.identity |= {key: [one[key] for one in each] for key in ("shards", "blocks")}
        self.identity["weights"] = [str(source.share) for source in sources]

    def _open(self) -> Dataset[Tensor]:
        return _MixedBlocks([loader._open() for loader in self._alone], self._firsts)

    @property
    def epochs(self) -> list[float]:
        """Passes over each source so far."""
        counts = self._quotas.counts(self.position)
        return [count / loader.blocks for count, loader in zip(counts, self._alone, strict=True)]

    def _shuffled(self) -> Iterator[int]:
        position = self.position
        for loader, count in zip(self._alone, self._quotas.counts(position), strict=True):
            loader.position = count
        streams = [loader._shuffled() for loader in self._alone]
        while True:
            source = self._quotas.source(position)
            yield self._firsts[source] + next(streams[source])
            position += 1

    def _name_the_broken_shard(self) -> None:
        for loader in self._alone:
            loader._name_the_broken_shard()


class _MixedBlocks(Dataset[Tensor]):
    """The blocks of several sources by a number that counts through all of them."""

    def __init__(self, sources: Sequence[Any], firsts: Sequence[int]) -> None:
        self._sources, self._firsts = sources, firsts

    def __getitems__(self, numbers: list[int]) -> Tensor:
        rows = []
        for number in numbers:
            source = bisect_right(self._firsts, number) - 1
            rows.append(self._sources[source].__getitems__([number - self._firsts[source]]))
        return torch.cat(rows) if rows else self._sources[0].__getitems__([])
