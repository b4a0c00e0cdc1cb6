"""Shards: what LitData reads back is what was written, and nothing broken goes unnoticed."""

import copy
from pathlib import Path

import numpy as np
import pytest
from litdata import StreamingDataset, TokensLoader

from lrtrain.data import shards
from lrtrain.data.shards import ShardWriter, check_shards, token_dtype
from lrtrain.runtime.errors import UserError


def documents(seed: int = 0, count: int = 60) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 60_000, random.integers(1, 400)).astype(np.uint16) for _ in range(count)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "CHUNK_TOKENS", 512)


def test_a_vocabulary_of_65536_is_the_largest_that_fits_into_two_bytes() -> None:
    assert token_dtype(65536) == np.uint16
    assert token_dtype(65537) == np.int32


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_litdata_reads_back_exactly_the_tokens_that_were_written(tmp_path: Path, dtype: type) -> None:
    writer = ShardWriter(tmp_path / "train", np.dtype(dtype))
    for tokens in documents():
        writer.append(tokens.astype(dtype), 3)
    split = writer.close()
    assert len(split.chunks) > 3
    assert {chunk.tokens for chunk in split.chunks[:-1]} == {512}
    blocks = StreamingDataset(str(tmp_path / "train"), item_loader=TokensLoader(block_size=1))
    read = [block.numpy() for block in blocks]
    assert np.array_equal(np.concatenate(read), np.concatenate(documents()))
    assert (split.documents, split.bytes, split.tokens) == (60, 180, len(read))


def test_a_writer_restored_in_the_middle_writes_the_same_files(tmp_path: Path) -> None:
    texts = documents()
    whole = ShardWriter(tmp_path / "whole", np.dtype(np.uint16))
    for tokens in texts:
        whole.append(tokens, 1)
    first = ShardWriter(tmp_path / "resumed", np.dtype(np.uint16))
    for tokens in texts[:25]:
        first.append(tokens, 1)
    state = copy.deepcopy(first.state())
    for tokens in documents(seed=1)[:9]:  # work after the last save, then a crash
        first.append(tokens, 1)
    (tmp_path / "resumed" / ".writing-left").mkdir()
    second = ShardWriter(tmp_path / "resumed", np.dtype(np.uint16))
    second.restore(state)
    for tokens in texts[25:]:
        second.append(tokens, 1)
    assert second.close() == whole.close()
    contents = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("whole", "resumed")]
    assert contents[0] == contents[1]


def test_every_damage_is_found_and_named(tmp_path: Path) -> None:
    def damage_byte(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[-7] ^= 1
        file.write_bytes(content)

    damages = {
        "truncated": ("chunk-00001.bin", lambda file: file.write_bytes(file.read_bytes()[:-2])),
        "missing": ("chunk-00002.bin", Path.unlink),
        "SHA-256": ("chunk-00000.bin", damage_byte),
        "corrupt": ("index.json", lambda file: file.write_text("{")),
        "other shards": ("index.json", lambda file: file.write_text(file.read_text().replace("00001", "00007"))),
        "int32": ("index.json", lambda file: file.write_text(file.read_text().replace("tensor:20", "tensor:15"))),
    }
    for word, (name, damage) in damages.items():
        writer = ShardWriter(tmp_path / word, np.dtype(np.uint16))
        for tokens in documents():
            writer.append(tokens, 1)
        split = writer.close()
        check_shards(writer.folder, split, "uint16", contents=True)
        damage(writer.folder / name)
        with pytest.raises(UserError, match=word) as raised:
            check_shards(writer.folder, split, "uint16", contents=True)
        assert name in str(raised.value)
        assert "\n" not in str(raised.value)
