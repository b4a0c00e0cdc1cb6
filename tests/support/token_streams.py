"""A small data set in many shards, DataModules on it, and the blocks that they give."""

import copy
import gc
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrtrain.data import shards
from lrtrain.data.datamodule import TokenDataModule
from lrtrain.data.manifest import Manifest
from lrtrain.data.preparation import PrepareSpec, prepare

DRAW = random.Random(0)
TEXTS = [" ".join(str(DRAW.randrange(10**6)) for _ in range(40)) for _ in range(300)]  # no block comes twice
BLOCK, CHUNK = 63, 2048
MADE: list[TokenDataModule] = []


def spec_of(folder: Path) -> PrepareSpec:
    return PrepareSpec([str(folder / "x.jsonl")], train_vocab_size=300, val_fraction=0.2)


def prepare_in(folder: Path) -> Path:
    """About 44,000 training tokens in 22 chunks, and 12,000 held-out ones in 6."""
    (folder / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "CHUNK_TOKENS", CHUNK)
        prepare(spec_of(folder), str(folder / "out"))
    return folder / "out"


def module(path: Path | str, **options: Any) -> TokenDataModule:
    made = TokenDataModule(str(path), **{"block_size": BLOCK, "batch_size": 4, **options})
    made.prepare_data()
    made.setup("fit")
    MADE.append(made)
    return made


def end_workers() -> Iterator[None]:
    """Around a test: ends the worker processes of its DataModules."""
    gc.freeze()  # what is there before the test stays: to look through all the libraries takes a second
    yield
    while MADE:
        MADE.pop().teardown("fit")
    gc.collect()
    gc.unfreeze()


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


def first(count: int, data: TokenDataModule, state: Any = None) -> list[tuple[int, ...]]:
    """The first blocks of a DataModule's training stream, or the first after a state."""
    loader = data.train_dataloader()
    if state is not None:
        loader.load_state_dict(copy.deepcopy(state))
    batches = -(-count // data.batch_size)
    return rows(itertools.islice(loader, batches))[:count]


def rows(batches: Any) -> list[tuple[int, ...]]:
    return [tuple(row) for batch in batches for row in batch.tolist()]
