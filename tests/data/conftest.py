"""What several tests of data share."""

from pathlib import Path

import pytest

import parted
from lrtrain.data import encode, shards


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Documents in seven files, to be prepared in parts."""
    parted.write_files(tmp_path / "text")
    return tmp_path / "text"


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks and batches of which 400 documents make many."""
    monkeypatch.setattr(shards, "CHUNK_TOKENS", 2048)
    monkeypatch.setattr(encode, "BATCH_DOCUMENTS", 8)
