"""The streaming loader of one split: shards read by LitData, an order of our own, a broken shard named."""

import warnings
from bisect import bisect
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from litdata import StreamingDataset, TokensLoader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lrtrain.data.loader_workers import deaf_from_the_start, heed_parent_only
from lrtrain.data.manifest import Manifest
from lrtrain.data.order import dealt, shuffled
from lrtrain.data.shard_cache import ShardCache
from lrtrain.data.shards import check_shards
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.ranks import raise_on_all
from lrtrain.runtime.stores import is_remote

ENDLESS = 2**48
"""The length of the training stream for a Trainer: more batches than any run has, and exact as a float.

One without a length would make Lightning read a batch ahead, which the saved position would then count."""

# LitData copies each block out of the read-only map at once, so nothing writes through it.
warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)


class BlockLoader:
    """Batches of shape (batch_size, block) int64 for one of several processes.

    Training data is one endless stream (`order.shuffled`), of which every global batch takes the next blocks. Every
    `iter()` goes on where the last one was left, and so does a state on any number of processes and workers and with
    any batch size: its place is a number of blocks. Nothing marks the end of an epoch, and no block is left out.

    Of other splits every `iter()` gives every block once, in order. The last batches may be shorter; that of a process
    which has no blocks left has shape (0, block), so that all processes have equally many.

    Of a remote data set each shard is fetched before its first block is read, ahead of that where the order allows, by
    the process that trains and not by its workers. All processes of a run come to that place in the same batch and
    agree there, so that a store that cannot be read ends all of them at once and they can still save together.

    A failure to read, or an id outside the vocabulary, becomes a UserError that names the broken shard. The state
    holds which data it was for; a state of other data is passed over with a line, and the stream begins anew.

    Args:
        path: Folder or URL of the split's shards.
        manifest: Of the data set.
        split: `train` or `val`.
        block: Tokens of a block.
        batch_size: Blocks in a batch of one process.
        seed: Order of the training blocks.
        num_workers: Processes that read ahead.
        pin_memory: Whether batches lie in pinned memory.
        rank: Which of the `processes` this one is.
        processes: How many processes share the batches.
        limit: An epoch is so many blocks, the first of the split; None: all.
        agree: Whether any of the processes reads a remote data set: then all meet where a shard begins.
    """

    def __init__(
        self,
        path: str,
        manifest: Manifest,
        split: str,
        block: int,
        batch_size: int,
        seed: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        rank: int = 0,
        processes: int = 1,
        limit: int | None = None,
        agree: bool = False,
    ) -> None:
        self.position = 0
        self._path, self._manifest, self._split, self._seed = path, manifest, split, seed
        self._batch_size, self._rank, self._processes = batch_size, rank, processes
        self._global_batch = batch_size * processes
        self._sizes = [chunk.tokens // block for chunk in manifest.split(split).chunks]
        if limit is not None:
            self._sizes = [max(0, min(size, limit - sum(self._sizes[:i]))) for i, size in enumerate(self._sizes)]
        self.identity = {"shards": manifest.split(split).digest, "block_size": block - 1, "seed": seed}
        self.identity |= {"blocks": sum(self._sizes)}
        self._block = block
        self._cache = ShardCache(path, manifest, split) if is_remote(path) else None
        self._agree = agree and processes > 1
        # A generator of its own: a DataLoader draws a number at every start, which training's must not depend on.
        self._options: dict[str, Any] = {"num_workers": num_workers, "pin_memory": pin_memory}
        self._options["generator"] = torch.Generator()
        self._options["worker_init_fn"] = heed_parent_only
        self._stream: Iterator[Tensor] | None = None

    @property
    def blocks(self) -> int:
        """Blocks of an epoch."""
        return sum(self._sizes)

    def __len__(self) -> int:
        return ENDLESS if self._split == "train" else -(-sum(self._sizes) // self._global_batch)

    def __iter__(self) -> Iterator[Tensor]:
        if self._split != "train":
            yield from self._read(self._in_order())
            return
        while True:
            if self._stream is None:
                self._stream = self._read(self._shuffled())
            try:
                batch = next(self._stream)
            except BaseException:
                self.close()  # so that another `iter` goes on here
                raise
            self.position += self._global_batch
            yield batch

    def close(self) -> None:
        """End the worker processes, which garbage collection would do only after a pause."""
        self._stream = None

    def state_dict(self) -> dict[str, Any]:
        return {"data": self.identity, "position": self.position, "global_batch": self._global_batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        saved = state.get("data", {})
        if changed := ", ".join(key for key, value in self.identity.items() if saved.get(key) != value):
            self._say(f"The {self._split} data is not that of the checkpoint ({changed}): its stream begins anew")
            return
        self.position = state["position"]
        if (before := state["global_batch"]) != self._global_batch:
            self._say(
                f"{self._split} data: a micro-batch of all processes is {self._global_batch} blocks and was {before} "
                "in the checkpoint; trainer.max_steps (and max_epochs, turned into it) counts steps of either size"
            )
        self.close()

    def _say(self, line: str) -> None:
        if self._rank == 0:
            print(line)

    def _in_order(self) -> Iterator[int]:
        ends = [*accumulate(self._sizes, initial=0)]
        for shard, (first, end) in enumerate(pairwise(ends)):
            if first < end:
                self._fetch(shard)
                yield from range(first, end)

    def _shuffled(self) -> Iterator[int]:
        """Numbers of the training blocks from `position` on; what is yielded next is on this machine."""
        ends = [*accumulate(self._sizes)]
        for blocks, following in pairwise(shuffled(self._sizes, self._seed, self.position)):
            self._fetch(bisect(ends, blocks[0]))
            if self._cache is not None:
                self._cache.fetch_ahead(bisect(ends, following[0]))
            yield from blocks

    def _fetch(self, shard: int) -> None:
        cache = self._cache
        self._together(lambda: cache.fetch(shard) if cache is not None else None)

    def _together(self, act: Callable[[], None]) -> None:
        """Acts, and where one of the processes cannot, raises its UserError on all of them."""
        if not self._agree:
            return act()
        refused = None
        try:
            act()
        except UserError as error:
            refused = error
        raise_on_all(refused)

    def _open(self) -> Dataset[Tensor]:
        """The blocks by their number; of a remote data set those of the shards that were fetched."""
        cache = self._cache
        self._together(lambda: cache.begin() if cache is not None else None)
        return _Blocks(self._path if cache is None else str(cache.folder), self._block)

    def _read(self, blocks: Iterator[int]) -> Iterator[Tensor]:
        batches = dealt(blocks, self._batch_size, self._rank, self._processes)
        loader = DataLoader(self._open(), batch_sampler=batches, collate_fn=_as_it_is, **self._options)
        with deaf_from_the_start():
            read = iter(loader)
        while True:
            try:
                batch = next(read, None)
            except UserError:
                raise
            except Exception:
                self._name_the_broken_shard()
                raise
            if batch is None:
                return
            if len(batch) and (int(batch.max()) >= self._manifest.vocab_size or int(batch.min()) < 0):
                self._name_the_broken_shard()
                raise UserError(
                    f"{self._path} holds token {int(batch.max())} outside its vocabulary of "
                    f"{self._manifest.vocab_size}: delete the folder and prepare it again"
                )
            yield batch

    def _name_the_broken_shard(self) -> None:
        """Raise UserError if a local shard is not what the manifest says; LitData reports such as a time-out."""
        if self._cache is None:
            check_shards(Path(self._path), self._manifest.split(self._split), self._manifest.dtype, contents=True)


class _Blocks(Dataset[Tensor]):
    """The blocks of the shards in a local folder by their number, a list of them at once as int64 (blocks, tokens)."""

    def __init__(self, folder: str, block: int) -> None:
        self._block = block
        # Only read by number: LitData's own order and its place in it are not used.
        self._shards = StreamingDataset(folder, item_loader=TokensLoader(block_size=block))

    def __getitems__(self, numbers: list[int]) -> Tensor:
        rows = [self._shards[number].long() for number in numbers]
        return torch.stack(rows) if rows else torch.empty(0, self._block, dtype=torch.int64)


def _as_it_is(batch: Any) -> Any:
    return batch
