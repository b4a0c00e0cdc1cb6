"""The DataModule prepares what its configuration names, and refuses what is wrong, damaged or does not fit."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from lrtrain.data import datamodule as datamodule_file
from lrtrain.data import shards
from lrtrain.data.datamodule import TokenDataModule
from lrtrain.data.manifest import Manifest
from lrtrain.runtime.errors import UserError
from token_streams import BLOCK, CHUNK, copied, end_workers, module, rows, spec_of

_end_workers = pytest.fixture(autouse=True)(end_workers)


def test_absent_data_is_prepared_when_the_configuration_names_a_source(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "CHUNK_TOKENS", CHUNK)
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


@pytest.mark.parametrize("option", ["block_size", "batch_size", "num_workers", "seed"])
def test_a_value_out_of_range_is_refused(option: str) -> None:
    with pytest.raises(UserError, match=f"data.{option} is -1"):
        TokenDataModule("x", **{option: -1})


@pytest.mark.parametrize(("limit", "batches"), [(1.0, None), (0.5, 23), (3, 3), (10**6, None)])
def test_a_line_says_how_much_of_the_held_out_split_is_predicted(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: float, batches: int | None
) -> None:
    data = module(prepared)
    trainer = L.Trainer(limit_val_batches=limit, accelerator="cpu", logger=False, default_root_dir=tmp_path)
    data.trainer = trainer
    data.setup("validate")
    held_out = data.manifest.val
    blocks = held_out.blocks(BLOCK + 1)
    assert len(data.val_dataloader()) == -(-blocks // 4) == 47
    read = blocks if batches is None else 4 * batches
    share = f"predicts {read * BLOCK:,} of {held_out.tokens:,} tokens ({read * BLOCK / held_out.tokens:.1%})"
    said = capsys.readouterr().out
    assert said == f"held-out data: validation reads {read:,} of {blocks:,} blocks and {share}\n"


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
        rows(itertools.islice(loader, 200))  # more than an epoch
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
