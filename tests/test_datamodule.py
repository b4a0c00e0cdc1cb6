"""The DataModule: every block once, ranks apart, exact resume, and refusing what does not fit."""

import copy
import gc
import itertools
import json
import multiprocessing
import random
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import distributed

from lrtrain.data import datamodule as datamodule_file
from lrtrain.data import shards
from lrtrain.data.datamodule import TokenDataModule
from lrtrain.data.manifest import Manifest
from lrtrain.data.prepare import PrepareSpec, prepare
from lrtrain.errors import UserError

DRAW = random.Random(0)
TEXTS = [" ".join(str(DRAW.randrange(10**6)) for _ in range(40)) for _ in range(300)]  # no block comes twice
BLOCK = 63
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["lrtrain.data.datamodule"])


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 38,000 training tokens in 19 chunks, and 9,000 held-out ones in one."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "CHUNK_TOKENS", 2048)
        prepare(spec_of(folder), str(folder / "out"))
    return folder / "out"


MADE: list[TokenDataModule] = []


@pytest.fixture(autouse=True)
def end_workers() -> Iterator[None]:
    yield
    while MADE:
        MADE.pop().teardown("fit")
    gc.collect()


def spec_of(folder: Path) -> PrepareSpec:
    return PrepareSpec([str(folder / "x.jsonl")], train_vocab_size=300, val_fraction=0.2)


def module(path: Path, **options: Any) -> TokenDataModule:
    made = TokenDataModule(str(path), **{"block_size": BLOCK, "batch_size": 4, **options})
    made.prepare_data()
    made.setup("fit")
    MADE.append(made)
    return made


def blocks_of(path: Path, split: str) -> list[tuple[int, ...]]:
    """Every whole block of a split, cut from the raw files in order."""
    found = []
    for chunk in Manifest.load(str(path)).split(split).chunks:
        tokens = np.fromfile(path / split / chunk.file, np.uint16, offset=12)
        assert len(tokens) == chunk.tokens
        found += [tuple(row) for row in tokens[: len(tokens) // 64 * 64].reshape(-1, 64).tolist()]
    return found


def copied(prepared: Path, to: Path) -> Path:
    for file in prepared.rglob("*"):
        if file.is_file():
            target = to / file.relative_to(prepared)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return to


def rows(batches: Any) -> list[tuple[int, ...]]:
    return [tuple(row) for batch in batches for row in batch.tolist()]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_validation_covers_every_block_once_and_training_every_whole_batch(prepared: Path, num_workers: int) -> None:
    data = module(prepared, num_workers=num_workers)
    assert sorted(rows(data.val_dataloader())) == sorted(blocks_of(prepared, "val"))
    assert rows(data.test_dataloader()) == rows(data.val_dataloader())
    loader = data.train_dataloader()
    batches = list(loader)
    assert {(batch.shape, batch.dtype) for batch in batches} == {(torch.Size([4, 64]), torch.int64)}
    seen, everything = rows(batches), blocks_of(prepared, "train")
    assert len(batches) == len(loader) == len(everything) // 4
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(everything)


def test_validation_is_in_order_and_training_is_shuffled_by_seed_and_epoch(prepared: Path) -> None:
    assert rows(module(prepared).val_dataloader()) == blocks_of(prepared, "val")
    loader = module(prepared, seed=1).train_dataloader()
    first, second = rows(loader), rows(loader)
    assert first == rows(module(prepared, seed=1).train_dataloader())
    assert first != rows(module(prepared, seed=2).train_dataloader())
    assert first != second
    assert first != sorted(first, key=blocks_of(prepared, "train").index)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_iterator_that_is_abandoned_neither_repeats_nor_skips_training_data(
    prepared: Path, num_workers: int
) -> None:
    loader = module(prepared, num_workers=num_workers).train_dataloader()
    wanted = rows(loader) + rows(loader)
    loader = module(prepared, num_workers=num_workers).train_dataloader()
    found: list[tuple[int, ...]] = []
    while len(found) < len(wanted):
        found += rows(itertools.islice(loader, 40))
    assert found[: len(wanted)] == wanted
    val = module(prepared, num_workers=num_workers).val_dataloader()
    assert rows(itertools.islice(val, 3)) == rows(itertools.islice(val, 3))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_restored_in_the_middle_goes_on_with_exactly_the_next_batches(
    prepared: Path, num_workers: int
) -> None:
    loader = module(prepared, num_workers=num_workers).train_dataloader()
    wanted = rows(loader) + rows(loader)
    loader = module(prepared, num_workers=num_workers).train_dataloader()
    batches = iter(loader)
    begun = rows(next(batches) for _ in range(7))
    state = copy.deepcopy(loader.state_dict())
    del batches
    resumed = module(prepared, num_workers=num_workers).train_dataloader()
    resumed.load_state_dict(state)
    assert (begun + rows(resumed) + rows(resumed))[: len(wanted)] == wanted


def test_the_state_follows_the_data_to_another_folder_but_not_to_other_data(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loader = module(prepared).train_dataloader()
    wanted = rows(loader)
    loader = module(prepared).train_dataloader()
    batches = iter(loader)
    begun = rows(next(batches) for _ in range(3))
    state = loader.state_dict()
    resumed = module(copied(prepared, tmp_path / "elsewhere")).train_dataloader()
    resumed.load_state_dict(copy.deepcopy(state))
    assert (begun + rows(resumed))[: len(wanted)] == wanted
    other = module(prepared, seed=5).train_dataloader()
    other.load_state_dict(copy.deepcopy(state))
    assert "seed" in capsys.readouterr().out
    assert rows(other) == rows(module(prepared, seed=5).train_dataloader())


def rank_reads(rank: int, port: int, path: str, results: Any) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    data = module(Path(path))
    train, val = data.train_dataloader(), data.val_dataloader()
    results.put((rank, len(train), rows(train), rows(train), rows(val)))
    distributed.barrier()
    distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def test_two_ranks_read_disjoint_equal_shares_that_make_up_the_epoch(prepared: Path) -> None:
    results = FORK.Queue()
    port = free_port()
    ranks = [FORK.Process(target=rank_reads, args=(r, port, str(prepared), results)) for r in range(2)]
    try:
        for process in ranks:
            process.start()
        (_, length, *first), (_, other_length, *second) = sorted(results.get(timeout=60) for _ in ranks)
    finally:
        for process in ranks:
            process.join(20)
            process.kill()
    everything = blocks_of(prepared, "train")
    assert length == other_length == len(everything) // 8
    for epoch in range(2):
        assert len(first[epoch]) == len(second[epoch]) == length * 4
        assert not set(first[epoch]) & set(second[epoch])
        assert set(first[epoch]) | set(second[epoch]) <= set(everything)
    assert set(first[0]) != set(first[1])
    assert not set(first[2]) & set(second[2])
    assert len(first[2]) == len(second[2]) == len(blocks_of(prepared, "val")) // 8 * 4


class Recorder(L.LightningModule):
    """A model that learns nothing and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, ...]] = []

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        self.seen += [tuple(row) for row in batch.tolist()]
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, data: TokenDataModule, steps: int, checkpoint: str | None = None) -> Recorder:
    model = Recorder()
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=False)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return model


@pytest.mark.parametrize("stop", [5, 10, 13])
def test_a_trainer_resumed_within_or_between_epochs_sees_the_data_of_one_that_never_stopped(
    prepared: Path, tmp_path: Path, stop: int
) -> None:
    def data() -> TokenDataModule:
        return TokenDataModule(str(prepared), BLOCK, batch_size=64)

    assert len(module(prepared, batch_size=64).train_dataloader()) == 10
    whole = fit(tmp_path, data(), 25).seen
    first = fit(tmp_path, data(), stop).seen
    second = fit(tmp_path, data(), 25, str(tmp_path / f"{stop}.ckpt")).seen
    assert first + second == whole


def test_absent_data_is_prepared_when_the_configuration_names_a_source(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = module(tmp_path / "new", prepare=spec_of(prepared.parent))
    assert "Preparing" in capsys.readouterr().out
    assert data.manifest.val.digest == Manifest.load(str(prepared)).val.digest
    module(tmp_path / "new", prepare=spec_of(prepared.parent))
    assert capsys.readouterr().out == ""


def test_absent_data_without_a_source_and_data_of_another_request_get_a_line(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lrtrain prepare"):
        module(tmp_path / "absent")
    with pytest.raises(UserError, match=r"val_fraction is 0\.2 there and 0\.3"):
        module(prepared, prepare=replace(spec_of(prepared.parent), val_fraction=0.3))


def test_a_model_with_too_small_a_vocabulary_is_refused_and_a_padded_one_is_not(prepared: Path) -> None:
    data = module(prepared)
    data.check(300)
    data.check(384)
    with pytest.raises(UserError, match=r"299.*300"):
        data.check(299)


def test_splits_that_are_too_short_are_refused_by_name(prepared: Path) -> None:
    with pytest.raises(UserError, match=r"train split .* tokens, less than one block of 4000"):
        module(prepared, block_size=4000)
    with pytest.raises(UserError, match=r"less than one batch of 100000"):
        module(prepared, batch_size=100_000).train_dataloader()


@pytest.mark.parametrize("option", ["block_size", "batch_size", "val_batch_size", "num_workers", "seed"])
def test_a_value_out_of_range_is_refused(option: str) -> None:
    with pytest.raises(UserError, match=f"data.{option} is -1"):
        TokenDataModule("x", **{option: -1})


def test_bytes_per_token_is_exact(prepared: Path) -> None:
    data = module(prepared)
    val = data.manifest.val
    assert data.bytes_per_token() == val.bytes / val.tokens
    assert data.bytes_per_token("train") == data.manifest.train.bytes / data.manifest.train.tokens


def test_a_shard_damaged_before_training_is_named_at_setup(prepared: Path, tmp_path: Path) -> None:
    folder = copied(prepared, tmp_path / "data")
    chunk = folder / "train" / "chunk-00003.bin"
    content = bytearray(chunk.read_bytes())
    content[100] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(UserError, match=r"chunk-00003\.bin is corrupt"):
        module(folder)
    chunk.write_bytes(content[:-2])
    with pytest.raises(UserError, match=r"chunk-00003\.bin is truncated"):
        module(folder)


def failure(loader: Any) -> str:
    try:
        list(loader)
    except UserError as error:
        return str(error)
    return "no UserError"


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("damage", ["truncated", "garbage", "deleted"])
def test_a_shard_damaged_during_training_is_named_in_one_line(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int, damage: str
) -> None:
    monkeypatch.setattr(datamodule_file, "CHECKSUM_BYTES", 0)
    folder = copied(prepared, tmp_path / "data")
    loader = module(folder, num_workers=num_workers).train_dataloader()
    chunk = folder / "train" / "chunk-00005.bin"
    if damage == "deleted":
        chunk.unlink()
    else:
        content = chunk.read_bytes()
        chunk.write_bytes(content[:200] if damage == "truncated" else b"\xff" * len(content))
    message = failure(loader)
    assert "chunk-00005.bin" in message
    assert "\n" not in message
