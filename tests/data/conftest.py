"""What several tests of data share."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import parted
import s3_server
from lrtrain.data import encode, shards
from lrtrain.runtime import stores
from lrtrain.runtime.errors import TemporaryError

URL = "s3://bucket/data"


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


@pytest.fixture(scope="module")
def stored(server: s3_server.S3Server, prepared: Path) -> s3_server.S3Server:
    """A server that has the prepared data set at `URL`."""
    stores.upload_folder(prepared, URL, "manifest.json")
    return server


@pytest.fixture
def cache(stored: s3_server.S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of remote data, and a store that is waited for a second."""
    monkeypatch.setenv("LITDATA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("LRTRAIN_STORE_WAIT", "1")
    return tmp_path / "cache"


@pytest.fixture
def other(stored: s3_server.S3Server, prepared: Path, request: pytest.FixtureRequest) -> str:
    """A copy of the data set that a test may spoil."""
    url = f"s3://bucket/{abs(hash(request.node.name))}"
    stores.upload_folder(prepared, url, "manifest.json")
    return url


@pytest.fixture
def away_after(stored: s3_server.S3Server, cache: Path) -> Iterator[Callable[..., None]]:
    """Stops the server when so many shards of training are in the cache, for good or for some seconds."""
    threads: list[threading.Thread] = []

    def act(shards: int, seconds: float | None) -> None:
        while len([*cache.glob("*/chunk-*.bin")]) < shards:
            time.sleep(0.005)
        stored.stop()
        if seconds is not None:
            time.sleep(seconds)
            stored.start()

    def begin(shards: int, seconds: float | None = None) -> None:
        threads.append(threading.Thread(target=act, args=(shards, seconds), daemon=True))
        threads[-1].start()

    yield begin
    for thread in threads:
        thread.join(60)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("LRTRAIN_STORE_WAIT", "0")
        try:
            stores.read(f"{URL}/manifest.json")
        except TemporaryError:
            stored.start()
