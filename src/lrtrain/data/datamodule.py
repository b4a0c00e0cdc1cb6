"""The DataModule: prepares what its configuration names, refuses what does not fit, and streams blocks of tokens."""

from fractions import Fraction
from functools import cached_property
from pathlib import Path

import lightning as L
from torch import distributed

from lrtrain.data.loader import BlockLoader
from lrtrain.data.manifest import SPLITS, Manifest, Split
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
        block_size: Tokens that the model sees at once.
        batch_size: Blocks in a batch of one process.
        num_workers: Processes that read ahead; 0 reads in the training process.
        seed: Order of the training blocks.
        prepare: What to make the data set from if it is not there yet, and what it must have been made from if it is
            (of URLs only the names are compared); null never prepares and takes what is there.
    """

    def __init__(
        self,
        path: str,
        block_size: int = 512,
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
        prepare: PrepareSpec | None = None,
    ) -> None:
        super().__init__()
        self.path = path.rstrip("/") if is_remote(path) else str(Path(path).expanduser())
        self.block_size = block_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.prepare = prepare
        self.prepare_data_per_node = not is_remote(self.path)
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
    def manifest(self) -> Manifest:
        """What the data set holds. Raises UserError if it is absent, damaged or of another request than `prepare`."""
        return existing(self.prepare, self.path) if self.prepare else Manifest.load(self.path)

    def prepare_data(self) -> None:
        """Prepare the data set, once a node, or once at a URL; without `prepare`, `setup` says that it is missing.

        Raises UserError for one that is there and was made from other local files or another tokenizer; among several
        processes `setup` does, on all of them.
        """
        if self.prepare is None:
            return
        try:
            prepare(self.prepare, self.path, ask_stores=False)
        except UserError as error:
            if _rank_and_processes()[1] == 1:
                raise
            self._refused = error  # alone it would leave the others in a collective

    def setup(self, stage: str | None = None) -> None:
        """Check the shards against the manifest, and say how much of the held-out split a validation predicts.

        Raises UserError for whatever would fail or mislead later.
        """
        self._check_alike()
        splits = {name: self.manifest.split(name) for name in SPLITS}
        contents = sum(chunk.bytes for split in splits.values() for chunk in split.chunks) <= CHECKSUM_BYTES
        for name, split in splits.items():
            if split.blocks(self.block_size + 1) == 0:
                raise UserError(
                    f"the {name} split of {self.path} has {split.tokens} tokens, less than one block of "
                    f"{self.block_size} + 1: lower data.block_size or prepare more text"
                )
            if not is_remote(self.path):
                check_shards(Path(self.path) / name, split, self.manifest.dtype, contents)
        # Not in train_dataloader: Lightning leaves every DataLoader class patched after an error there.
        if stage == "fit":
            blocks, together = splits["train"].blocks(self.block_size + 1), self.batch_size * _rank_and_processes()[1]
            if blocks < together:
                raise UserError(
                    f"the train split of {self.path} has {blocks} blocks of {self.block_size} + 1 tokens, less "
                    f"than one batch of {self.batch_size} for every process: lower data.batch_size"
                )
            if self.trainer is not None:
                # Now: callbacks ask in their own setup when there is validation.
                self._epoch = count_in_steps(self.trainer, Fraction(blocks, together)) * together
                self._overfit = bool(self.trainer.overfit_batches)  # type: ignore[attr-defined]
        if self.trainer is not None and self.trainer.is_global_zero:
            limit = self.trainer.limit_test_batches if stage == "test" else self.trainer.limit_val_batches
            print(self._held_out(splits["val"], limit))

    def _check_alike(self) -> None:
        """Raise on all processes what one of them met, or that they were given different data."""
        refused, self._refused = self._refused, None
        try:
            digest = None if refused else (self.manifest.train.digest, self.manifest.val.digest)
        except UserError as error:
            refused = error
        raise_on_all(refused)
        told = gathered((self.path, digest, is_remote(self.path)))
        self._remote = any(remote for _, _, remote in told)
        other = next((path for path, theirs, _ in told if theirs != digest), None)
        if other is not None:
            raise UserError(f"data.path: the processes were given different data, {self.path} and {other}")

    def _held_out(self, split: Split, limit: int | float) -> str:
        blocks, batches = split.blocks(self.block_size + 1), len(self._loader("val"))
        batches = min(limit, batches) if isinstance(limit, int) else int(limit * batches)
        read = min(blocks, batches * self.batch_size * _rank_and_processes()[1])
        share = f"{read * self.block_size:,} of {split.tokens:,} tokens ({read * self.block_size / split.tokens:.1%})"
        return f"held-out data: validation reads {read:,} of {blocks:,} blocks and predicts {share}"

    def check(self, vocab_size: int) -> None:
        """Raise UserError unless a model of `vocab_size` can read these tokens; a larger, padded one can."""
        if vocab_size < self.manifest.vocab_size:
            raise UserError(
                f"the model's vocab_size is {vocab_size} and the data in {self.path} has "
                f"{self.manifest.vocab_size} tokens: set the model's vocab_size to that"
            )

    @property
    def epochs_seen(self) -> float:
        """Passes over the training data so far, of the length that the Trainer calls an epoch; it sees none end."""
        return float(self._training.position / self._epoch) if self._training is not None and self._epoch else 0.0

    def bytes_per_token(self, split: str = "val") -> float:
        """UTF-8 bytes of text per token of a split: bits per byte = nats per token / (ln 2 · bytes per token)."""
        return self.manifest.bytes_per_token(split)

    def tokenizer_json(self) -> str:
        """The text of the data set's tokenizer.json. Raises UserError if it cannot be read or is another one."""
        return read_tokenizer(self.path, self.manifest.tokenizer_sha256)

    def train_dataloader(self) -> BlockLoader:
        self._training = self._loader("train")
        return self._training

    def val_dataloader(self) -> BlockLoader:
        return self._loader("val")

    def test_dataloader(self) -> BlockLoader:
        return self._loader("val")

    def teardown(self, stage: str | None = None) -> None:
        """End the training loader's worker processes."""
        if self._training is not None:
            self._training.close()

    def _loader(self, name: str) -> BlockLoader:
        rank, processes = _rank_and_processes()
        return BlockLoader(
            f"{self.path}/{name}",
            self.manifest,
            name,
            self.block_size + 1,
            self.batch_size,
            seed=self.seed,
            num_workers=self.num_workers,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            rank=rank,
            processes=processes,
            limit=int(self._epoch) if self._overfit and name == "train" else None,
            agree=self._remote,
        )


def _rank_and_processes() -> tuple[int, int]:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
