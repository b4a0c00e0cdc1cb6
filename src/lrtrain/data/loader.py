"""The streaming loader of one split: LitData's, which names a broken shard and resumes on any number of processes."""

import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from litdata import StreamingDataLoader, StreamingDataset, TokensLoader
from litdata.streaming import Cache, downloader
from litdata.streaming.shuffle import Shuffle
from litdata.utilities.env import _WorkerEnv

from lrtrain.data.manifest import Manifest
from lrtrain.data.remainder import DataGrid, Remainder
from lrtrain.data.shards import check_shards
from lrtrain.runtime.errors import UserError

# Keys of our own entries in the loader's state: which data it is for, and what grids began its epoch before this one.
IDENTITY, BEGUN = "data", "begun"

# LitData copies each block out of the read-only map at once, so nothing writes through it.
warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)


class BlockDataset(StreamingDataset):
    """LitData's dataset, in which `begun` holds an epoch and the grids that have read a part of it already.

    LitData has an elastic resume of its own, but it reads up to a batch of each process twice, and hundreds of blocks
    when a run is stopped again within that epoch.
    """

    begun: tuple[int, tuple[DataGrid, ...]] = (0, ())

    def _create_shuffler(self, cache: Cache) -> Shuffle:
        whole = super()._create_shuffler(cache)
        epoch, grids = self.begun
        return Remainder(whole, epoch, grids) if grids and self.current_epoch <= epoch else whole

    def begin(self, epoch: int, grids: tuple[DataGrid, ...]) -> None:
        """From now on `epoch` gives only what `grids` have left."""
        self.begun = (epoch, grids)
        self.shuffler = None  # LitData keeps the one that it asked for the length

    def lost(self, grid: DataGrid) -> int:
        """How many blocks of the epoch that is begun fill no whole batch on every process of `grid`."""
        whole = super()._create_shuffler(self._create_cache(_WorkerEnv.detect()))
        return Remainder(whole, *self.begun).lost(grid)


def block_dataset(path: str, block: int, shuffle: bool, seed: int) -> BlockDataset:
    """Blocks of `block` tokens of the shards in `path` as int64 tensors of shape (block,).

    Build it when the process group exists: it asks there which share of the blocks is its own. Shuffled, each rank
    gets equally many whole batches; in order, a single process gets every block and several get equally many.
    """
    remote = "://" in path
    if remote:
        _allow_plain_http()
    return BlockDataset(
        path,
        cache_dir=_cache_folder() if remote else None,
        item_loader=TokensLoader(block_size=block),
        shuffle=shuffle,
        drop_last=True if shuffle else None,
        seed=seed,
        transform=torch.Tensor.long,
        item_shuffle_window=0,  # permute a chunk's blocks as a whole, not window by window
    )


class BlockLoader(StreamingDataLoader):
    """Batches of shape (batch_size, block) int64.

    Of training data every `iter()` gives `len(self)` batches and goes on where the last one was left, from one epoch
    of the data into the next: a Trainer that abandons an iterator at its length, or that resumes at the end of an
    epoch, then neither repeats nor skips data. Of other splits every `iter()` begins at the beginning.

    A failure to read, or an id outside the vocabulary, becomes a UserError that names the broken shard. The state it
    saves holds which data it was for; a state of other data is passed over with a line, and the epoch starts anew.

    On as many processes, workers and blocks a batch as saved it, a state goes on with exactly the next batch. On
    others it goes on with the blocks of the epoch that no process has read, dealt out anew: none comes twice, and a
    line says how many fill no whole batch on every process and are left out. The next epoch is an ordinary one. The
    state is the same on every process, so that of any serves all.
    """

    def __init__(
        self, dataset: BlockDataset, manifest: Manifest, split: str, identity: dict[str, Any], **options: Any
    ) -> None:
        super().__init__(dataset, **options)
        self._manifest = manifest
        self._split = split
        self._identity = identity
        self._stream: Iterator[torch.Tensor] | None = None  # epoch after epoch
        self._batches = super().__len__()  # of a whole epoch; LitData's would change within one that was dealt anew

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[torch.Tensor]:
        if self._split != "train":
            yield from self._checked(super().__iter__())
            return
        for _ in range(len(self)):
            if self._stream is None:
                self._stream = chain.from_iterable(map(self._checked, iter(super().__iter__, None)))
            yield next(self._stream)

    def close(self) -> None:
        """End the running epoch and its worker processes, which garbage collection would do only after a pause."""
        self._stream = None

    def _checked(self, batches: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        while True:
            try:
                batch = next(batches, None)
            except Exception:
                self._name_the_broken_shard()
                raise
            if batch is None:
                return
            if int(batch.max()) >= self._manifest.vocab_size or int(batch.min()) < 0:
                self._name_the_broken_shard()
                raise UserError(
                    f"{self._folder} holds token {int(batch.max())} outside its vocabulary of "
                    f"{self._manifest.vocab_size}: delete the folder and prepare it again"
                )
            yield batch

    def state_dict(self) -> dict[str, Any]:
        epoch, grids = self.dataset.begun
        begun = [asdict(grid) for grid in grids] if epoch == self.current_epoch else []
        return {**super().state_dict(), IDENTITY: self._identity, BEGUN: begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        saved = state.get(IDENTITY, {})
        if changed := ", ".join(key for key, value in self._identity.items() if saved.get(key) != value):
            self._say(f"The {self._split} data is not that of the checkpoint ({changed}): its epoch starts anew")
            return
        env, epoch, last = self.dataset.distributed_env, state["current_epoch"], _grid_of(state["dataset"])
        here = DataGrid(env.world_size, env.num_nodes, self.num_workers or 1, int(self.batch_size or 1))
        begun = tuple(DataGrid(**grid) for grid in state.get(BEGUN, []))
        # LitData refuses a folder that has moved, though it is the same data.
        where = {"input_dir_path": self.dataset.input_dir.path, "input_dir_url": self.dataset.input_dir.url}
        state = {**state, "dataset": {**state["dataset"], **where}}
        dealt_anew = here != last
        if dealt_anew:
            begun += (last,) if last.batches else ()
            state = _at_the_start_of(here, state)
        self.dataset.begin(epoch, begun)
        super().load_state_dict(state)
        if epoch and not state["num_samples_yielded"]:
            self.restore = True  # LitData takes a state without batches for the end of the epoch before
        if epoch and dealt_anew:
            self._say(
                f"{self._split} data: resumed on {here}, saved on {last}: 0 blocks of this epoch will be seen twice, "
                f"{self.dataset.lost(here)} not at all"
            )
        self.close()

    def _say(self, line: str) -> None:
        if self.dataset.distributed_env.global_rank == 0:
            print(line)

    @property
    def _folder(self) -> str:
        return str(self.dataset.input_dir.url or self.dataset.input_dir.path)

    def _name_the_broken_shard(self) -> None:
        """Raise UserError if a local shard is not what the manifest says; LitData reports such as a time-out."""
        if self.dataset.input_dir.url is None:
            check_shards(Path(self._folder), self._manifest.split(self._split), self._manifest.dtype, contents=True)


def _grid_of(state: dict[str, Any]) -> DataGrid:
    """The grid that saved a state of LitData's dataset, and how far it came in its epoch."""
    batches = state["num_samples_yielded"] // state["batch_size"]
    nodes = state["initial_num_nodes"]
    return DataGrid(state["world_size"], nodes, state["num_workers"], state["batch_size"], batches)


def _at_the_start_of(grid: DataGrid, state: dict[str, Any]) -> dict[str, Any]:
    """A loader's state as if `grid` had saved it before it read anything of the epoch."""
    own = {"world_size": grid.processes, "initial_num_nodes": grid.nodes, "num_workers": grid.workers}
    own |= {"batch_size": grid.batch_size, "num_samples_yielded": 0, "current_epoch": state["current_epoch"]}
    return {**state, "dataset": {**state["dataset"], **own}, "num_samples_yielded": 0, "latest_worker_idx": -1}


def _cache_folder() -> str:
    """Where chunks of a remote data set are kept, instead of LitData's ~/.lightning."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.environ.get("LITDATA_CACHE_DIR") or os.path.join(base, "lrtrain", "chunks")


def _allow_plain_http() -> None:
    """Let LitData's S3 client speak to an http:// endpoint (MinIO in a cluster); it has no public switch for this."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    if endpoint.startswith("http://"):
        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
