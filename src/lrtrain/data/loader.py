"""The streaming loader of one split: LitData's, which names a broken shard and resumes only on the same data."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from litdata import StreamingDataLoader, StreamingDataset, TokensLoader
from litdata.streaming import downloader

from lrtrain.data.manifest import Manifest
from lrtrain.data.shards import check_shards
from lrtrain.errors import UserError

IDENTITY = "data"  # key of our own entry in the loader's state

# LitData copies each block out of the read-only map at once, so nothing writes through it.
warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)


def block_dataset(path: str, block: int, shuffle: bool, seed: int) -> StreamingDataset:
    """Blocks of `block` tokens of the shards in `path` as int64 tensors of shape (block,).

    Build it when the process group exists: it asks there which share of the blocks is its own. Shuffled, each rank
    gets equally many whole batches; in order, a single process gets every block and several get equally many.
    """
    remote = "://" in path
    if remote:
        _allow_plain_http()
    return StreamingDataset(
        path,
        cache_dir=_cache_folder() if remote else None,
        item_loader=TokensLoader(block_size=block),
        shuffle=shuffle,
        drop_last=True if shuffle else None,
        seed=seed,
        transform=_to_int64,
        item_shuffle_window=0,  # permute a chunk's blocks as a whole, not window by window
    )


class BlockLoader(StreamingDataLoader):
    """Batches of shape (batch_size, block) int64.

    With `endless`, every `iter()` gives `len(self)` batches and goes on where the last one was left, from one epoch of
    the data into the next: a Trainer that abandons an iterator at its length, or that resumes at the end of an epoch,
    then neither repeats nor skips data. Otherwise every `iter()` gives the split from its beginning.

    A failure to read, or an id outside the vocabulary, becomes a UserError that names the broken shard. The state it
    saves holds which data it was for; a state of other data is passed over with a line, and the epoch starts anew.
    """

    def __init__(
        self,
        dataset: StreamingDataset,
        manifest: Manifest,
        split: str,
        identity: dict[str, Any],
        endless: bool,
        **options: Any,
    ) -> None:
        super().__init__(dataset, **options)
        self._manifest = manifest
        self._split = split
        self._identity = identity
        self._endless = endless
        self._epoch: Iterator[torch.Tensor] | None = None

    def __iter__(self) -> Iterator[torch.Tensor]:
        if not self._endless:
            yield from self._checked(super().__iter__())
            return
        for _ in range(len(self)):
            if self._epoch is None:
                self._epoch = self._checked(super().__iter__())
            batch = next(self._epoch, None)
            if batch is None:
                self._epoch = self._checked(super().__iter__())
                batch = next(self._epoch)
            yield batch

    def close(self) -> None:
        """End the running epoch and its worker processes, which garbage collection would do only after a pause."""
        self._epoch = None

    def _checked(self, batches: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except Exception:
                self._name_the_broken_shard()
                raise
            if int(batch.max()) >= self._manifest.vocab_size or int(batch.min()) < 0:
                self._name_the_broken_shard()
                raise UserError(
                    f"{self._folder} holds token {int(batch.max())} outside its vocabulary of "
                    f"{self._manifest.vocab_size}: delete the folder and prepare it again"
                )
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), IDENTITY: self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        saved = state.get(IDENTITY)
        if saved != self._identity:
            changed = [key for key in self._identity if (saved or {}).get(key) != self._identity[key]]
            print(f"The {self._split} data is not that of the checkpoint ({', '.join(changed)}): its epoch starts anew")
            return
        # LitData refuses a folder that has moved, though it is the same data.
        where = {"input_dir_path": self.dataset.input_dir.path, "input_dir_url": self.dataset.input_dir.url}
        super().load_state_dict({**state, "dataset": {**state["dataset"], **where}})
        self.close()

    @property
    def _folder(self) -> str:
        return str(self.dataset.input_dir.url or self.dataset.input_dir.path)

    def _name_the_broken_shard(self) -> None:
        """Raise UserError if a local shard is not what the manifest says; LitData reports such as a time-out."""
        if self.dataset.input_dir.url is None:
            check_shards(Path(self._folder), self._manifest.split(self._split), self._manifest.dtype, contents=True)


def _to_int64(block: torch.Tensor) -> torch.Tensor:
    return block.to(torch.int64)


def _cache_folder() -> str:
    """Where chunks of a remote data set are kept, instead of LitData's ~/.lightning."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.environ.get("LITDATA_CACHE_DIR") or os.path.join(base, "lrtrain", "chunks")


def _allow_plain_http() -> None:
    """Let LitData's S3 client speak to an http:// endpoint (MinIO in a cluster); it has no public switch for this."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    if endpoint.startswith("http://"):
        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
