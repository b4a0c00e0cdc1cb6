"""The DataModule: prepares what its configuration names, refuses what does not fit, and streams blocks of tokens."""

from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
from torch import distributed

from lrtrain.data.loader import BlockLoader
from lrtrain.data.manifest import SPLITS, Manifest
from lrtrain.data.mix import MixManifest, Source, Weighted, bytes_per_token, check_mix, described
from lrtrain.data.mixed_loader import MixedLoader
from lrtrain.data.preparation import existing, prepare
from lrtrain.data.run_length import count_in_steps
from lrtrain.data.shards import check_shards
from lrtrain.data.spec import PrepareSpec
from lrtrain.data.tokenizer import read_tokenizer
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.ranks import gathered, raise_on_all
from lrtrain.runtime.stores import is_remote

CHECKSUM_BYTES = 2**30  # local data up to this size is checked against its SHA-256 at setup, in a second or two


class TokenDataModule(L.LightningDataModule):
    """Blocks of `block_size` + 1 tokens from prepared shards, in batches of shape (batch_size, block_size + 1), int64.

    The model takes the first `block_size` of a block as inputs and the last as targets. Training data is an endless
    stream, every epoch of it shuffled by `seed`; held-out blocks come in order, each once on any number of
    processes. `test` reads the held-out split. The place in the stream is saved with a checkpoint and restored.
    The first token of a block is never predicted, nor is what a shard has left after its last whole block: a line says
    how much of the held-out split is.

    Args:
        path: The folder of the data set, or the URL of one (`s3://…`).
        mix: In its place several data sets of one tokenizer, as [{path: data/web, weight: 0.7}, {path: data/code,
            weight: 0.3}], where `name: …` says what metrics call one (null: the end of its path). Each has its weight's
            share of the training blocks at every place in the stream; an epoch is as many blocks as all have together.
            Held-out losses are measured of each (`val/web/loss`), and `val/loss` is their mean by weight.
        block_size: Tokens that the model sees at once.
        batch_size: Blocks in a batch of one process.
        num_workers: Processes that read ahead; 0 reads in the training process.
        seed: Order of the training blocks.
        prepare: What to make the data set from if it is not there yet, and what it must have been made from if it is
            (of URLs only the names are compared); null never prepares and takes what is there.
    """

    def __init__(
        self,
        path: str | None = None,
        block_size: int = 512,
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
        prepare: PrepareSpec | None = None,
        mix: list[Weighted] | None = None,
    ) -> None:
        super().__init__()
        if (path is None) == (mix is None):
            raise UserError(
                "exactly one of data.path and data.mix must be given: a data set, or several by weight (with "
                "--data.path null --data.prepare null over a recipe that names one)"
            )
        if mix is not None and prepare is not None:
            raise UserError("data.prepare makes one data set, of data.path: null is needed with data.mix")
        self._named = [("", path, Fraction(1))] if path is not None else check_mix(mix or [])
        self._named = [(name, _spelled(where), share) for name, where, share in self._named]
        self.block_size = block_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.prepare = prepare
        self.prepare_data_per_node = path is None or not is_remote(path)
        least = {"block_size": 1, "batch_size": 1, "num_workers": 0, "seed": 0}
        for name, bound in least.items():
            if (value := getattr(self, name)) < bound:
                raise UserError(f"data.{name} is {value}: give at least {bound}")
        if prepare is not None:
            prepare.check()
        self._training: BlockLoader | None = None
        self._refused: UserError | None = None
        self._remote = False
        self._epoch = Fraction(0)
        self._overfit = False

    @cached_property
    def sources(self) -> list[Source]:
        """The data sets. Raises UserError if one is absent, damaged or of another request than `prepare`."""
        prepare = self.prepare
        return [
            Source(name, path, share, existing(prepare, path) if prepare else Manifest.load(path))
            for name, path, share in self._named
        ]

    @cached_property
    def manifest(self) -> Manifest | MixManifest:
        """What the data hold. Raises UserError as `sources`, and if those of a mix have not one tokenizer."""
        return MixManifest.of(self.sources) if self.mixed else self.sources[0].manifest

    @property
    def mixed(self) -> bool:
        return bool(self._named[0][0])

    def prepare_data(self) -> None:
        """Prepare the data set, once a node, or once at a URL; without `prepare`, `setup` says that it is missing.

        Raises UserError for one that is there and was made from other local files or another tokenizer; among several
        processes `setup` does, on all of them.
        """
        if self.prepare is None:
            return
        _, path, _ = self._named[0]
        try:
            prepare(self.prepare, path, ask_stores=False)
        except UserError as error:
            if _rank_and_processes()[1] == 1:
                raise
            self._refused = error  # alone it would leave the others in a collective

    def setup(self, stage: str | None = None) -> None:
        """Check the shards against the manifests, and say what a mix is and how much of the held-out data is predicted.

        Raises UserError for whatever would fail or mislead later.
        """
        self._check_alike()
        for source in self.sources:
            self._check(source)
        # Not in train_dataloader: Lightning leaves every DataLoader class patched after an error there.
        if stage == "fit":
            blocks = sum(source.manifest.train.blocks(self.block_size + 1) for source in self.sources)
            together = self.batch_size * _rank_and_processes()[1]
            if blocks < together:
                raise UserError(
                    f"the train split of {self._where()} has {blocks} blocks of {self.block_size} + 1 tokens, less "
                    f"than one batch of {self.batch_size} for every process: lower data.batch_size"
                )
            if self.trainer is not None:
                # Now: callbacks ask in their own setup when there is validation.
                self._epoch = count_in_steps(self.trainer, Fraction(blocks, together)) * together
                self._overfit = bool(self.trainer.overfit_batches)  # type: ignore[attr-defined]
                if self.mixed and self._overfit:
                    raise UserError("trainer.overfit_batches takes the first blocks of one data set: set data.path")
        if self.trainer is not None and self.trainer.is_global_zero:
            if self.mixed and stage == "fit":
                steps = self.trainer.max_steps * self.trainer.accumulate_grad_batches
                run = steps * self.batch_size * _rank_and_processes()[1] if steps > 0 else None
                print(described(self.sources, self.block_size + 1, run))
            limit = self.trainer.limit_test_batches if stage == "test" else self.trainer.limit_val_batches
            for source in self.sources:
                print(self._held_out(source, limit))

    def _check_alike(self) -> None:
        """Raise on all processes what one of them met, or that they were given different data."""
        refused, self._refused = self._refused, None
        digests: list[tuple[str, str]] = []
        try:
            if refused is None:
                assert self.manifest  # of one tokenizer
                digests = [(s.manifest.train.digest, s.manifest.val.digest) for s in self.sources]
        except UserError as error:
            refused = error
        raise_on_all(refused)
        told = gathered((self._where(), digests, any(is_remote(path) for _, path, _ in self._named)))
        self._remote = any(remote for _, _, remote in told)
        other = next((where for where, theirs, _ in told if theirs != digests), None)
        if other is not None:
            raise UserError(f"data.path: the processes were given different data, {self._where()} and {other}")

    def _check(self, source: Source) -> None:
        splits = {name: source.manifest.split(name) for name in SPLITS}
        contents = sum(chunk.bytes for split in splits.values() for chunk in split.chunks) <= CHECKSUM_BYTES
        for name, split in splits.items():
            if split.blocks(self.block_size + 1) == 0:
                raise UserError(
                    f"the {name} split of {source.path} has {split.tokens} tokens, less than one block of "
                    f"{self.block_size} + 1: lower data.block_size or prepare more text"
                )
            if not is_remote(source.path):
                check_shards(Path(source.path) / name, split, source.manifest.dtype, contents)

    def _held_out(self, source: Source, limit: int | float) -> str:
        split, batches = source.manifest.val, len(self._loader(source, "val"))
        blocks = split.blocks(self.block_size + 1)
        batches = min(limit, batches) if isinstance(limit, int) else int(limit * batches)
        read = min(blocks, batches * self.batch_size * _rank_and_processes()[1])
        share = f"{read * self.block_size:,} of {split.tokens:,} tokens ({read * self.block_size / split.tokens:.1%})"
        of = f" of {source.name}" if source.name else ""
        return f"held-out data{of}: validation reads {read:,} of {blocks:,} blocks and predicts {share}"

    def check(self, vocab_size: int) -> None:
        """Raise UserError unless a model of `vocab_size` can read these tokens; a larger, padded one can."""
        if vocab_size < self.manifest.vocab_size:
            raise UserError(
                f"the model's vocab_size is {vocab_size} and the data in {self._where()} has "
                f"{self.manifest.vocab_size} tokens: set the model's vocab_size to that"
            )

    def _where(self) -> str:
        return ", ".join(path for _, path, _ in self._named)

    @property
    def epochs_seen(self) -> float:
        """Passes over the training data so far, of the length that the Trainer calls an epoch; it sees none end."""
        return float(self._training.position / self._epoch) if self._training is not None and self._epoch else 0.0

    @property
    def source_epochs(self) -> dict[str, float]:
        """Passes over each source of a mix so far, by its name."""
        if not isinstance(self._training, MixedLoader):
            return {}
        return dict(zip((source.name for source in self.sources), self._training.epochs, strict=True))

    @property
    def source_shares(self) -> dict[str, float]:
        """The weight of each source of a mix by its name, in the order of the held-out loaders; they sum to one."""
        return {source.name: float(source.share) for source in self.sources} if self.mixed else {}

    def bytes_per_token(self, split: str = "val", source: str | None = None) -> float:
        """UTF-8 bytes of text per token of a split: bits per byte = nats per token / (ln 2 · bytes per token).

        Of a mix it is the mean by weight, which is a share of tokens; or that of a `source`.
        """
        return bytes_per_token([one for one in self.sources if source is None or one.name == source], split)

    def tokenizer_json(self) -> str:
        """The text of the data's tokenizer.json. Raises UserError if it cannot be read or is another one."""
        return read_tokenizer(self.sources[0].path, self.manifest.tokenizer_sha256)

    def train_dataloader(self) -> BlockLoader:
        if self.mixed:
            self._training = MixedLoader(self.sources, self.block_size + 1, self.batch_size, **self._options())
        else:
            self._training = self._loader(self.sources[0], "train")
        return self._training

    def val_dataloader(self) -> Any:
        """The loader of the held-out split; of a mix a list of them, one a source."""
        loaders = [self._loader(source, "val") for source in self.sources]
        return loaders if self.mixed else loaders[0]

    def test_dataloader(self) -> Any:
        return self.val_dataloader()

    def teardown(self, stage: str | None = None) -> None:
        """End the training loader's worker processes."""
        if self._training is not None:
            self._training.close()

    def _loader(self, source: Source, name: str) -> BlockLoader:
        limit = int(self._epoch) if self._overfit and name == "train" else None
        folder, length = f"{source.path}/{name}", self.block_size + 1
        return BlockLoader(folder, source.manifest, name, length, self.batch_size, **self._options(), limit=limit)

    def _options(self) -> dict[str, Any]:
        rank, processes = _rank_and_processes()
        pinned = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        workers = {"num_workers": self.num_workers, "pin_memory": pinned}
        return {"seed": self.seed, **workers, "rank": rank, "processes": processes, "agree": self._remote}


def _spelled(path: str) -> str:
    return path.rstrip("/") if is_remote(path) else str(Path(path).expanduser())


def _rank_and_processes() -> tuple[int, int]:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
