"""Data on s3:// (moto on loopback): the stream of local data, through outages, and what is wrong with it named."""

import os
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import s3_server
from commandline import arguments, refusal
from lrtrain.data import shard_cache
from lrtrain.runtime import stores
from lrtrain.runtime.errors import TemporaryError, UserError
from token_streams import end_workers, first, module, rows

_end_workers = pytest.fixture(autouse=True)(end_workers)
pytestmark = pytest.mark.usefixtures("cache")
URL = "s3://bucket/data"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_stream_is_that_of_local_data_through_an_outage(
    prepared: Path, num_workers: int, away_after: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("LRTRAIN_STORE_WAIT", "30")
    data = module(URL, num_workers=num_workers)
    held_out = rows(data.val_dataloader())
    assert held_out == rows(module(prepared).val_dataloader())
    away_after(6 + 4, 2.0)
    assert first(800, data) == first(800, module(prepared))
    assert "trying again in" in capfd.readouterr().err


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_lasting_outage_is_an_error_after_which_the_stream_goes_on(
    server: s3_server.S3Server, prepared: Path, num_workers: int
) -> None:
    loader = module(URL, num_workers=num_workers).train_dataloader()
    found = rows(islice(loader, 2))
    with server.away(), pytest.raises(TemporaryError, match=r"downloading s3://bucket/data/train/chunk-\d+.bin failed"):
        found.extend(row for batch in loader for row in rows([batch]))
    found += rows(islice(loader, 100))
    assert len(found) >= 400
    assert found == first(len(found), module(prepared))
    loader.close()


def test_a_shard_that_is_not_the_manifests_is_fetched_again_and_then_named(
    prepared: Path, other: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    download, spoiled = stores.download, []

    def spoiling(url: str, file: Path) -> None:
        download(url, file)
        if url.endswith(".bin") and not spoiled:
            spoiled.append(url)
            file.write_bytes(bytes(file.stat().st_size))

    monkeypatch.setattr(stores, "download", spoiling)
    assert first(100, module(other)) == first(100, module(prepared))
    assert (
        f"shard {spoiled[0]} is corrupt, its SHA-256 is not the manifest's: fetching it again" in capfd.readouterr().err
    )
    for name in stores.stored(f"{other}/train"):
        if name.endswith(".bin"):
            stores.write(f"{other}/train/{name}", stores.read(f"{other}/train/{name}")[:-2])
    for file in Path(os.environ["LITDATA_CACHE_DIR"]).glob("*/*.bin"):
        file.unlink()
    with pytest.raises(UserError, match=rf"shard {other}/train/chunk-\d+.bin is truncated or corrupt, 4106 bytes"):
        first(800, module(other))


def test_a_shard_that_was_altered_in_the_cache_is_fetched_again(prepared: Path, cache: Path) -> None:
    assert first(800, module(URL)) == (wanted := first(800, module(prepared)))
    for file in cache.glob("*/*.bin"):
        content = bytearray(file.read_bytes())
        content[40] ^= 1
        file.write_bytes(content)
    for file in cache.glob("*/index.json"):
        file.write_text("{")
    assert first(800, module(URL)) == wanted


def test_a_shard_that_is_gone_from_the_store_is_named(other: str) -> None:
    for name in stores.stored(f"{other}/train"):
        if name.endswith(".bin"):
            stores.delete(f"{other}/train/{name}")
    with pytest.raises(UserError, match=rf"{other}/train/chunk-\d+.bin is missing: copy it there again"):
        first(4, module(other))


def test_the_cache_keeps_to_its_limit_and_the_stream_to_its_blocks(
    prepared: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LRTRAIN_CACHE_SIZE", "30KB")  # seven shards
    monkeypatch.setattr(shard_cache, "IN_USE_SECONDS", 0)
    loader = module(URL).train_dataloader()
    sizes, found = [], []
    for batch in islice(loader, 400):
        found += rows([batch])
        sizes.append(len([*cache.glob("*/*.bin")]))
    assert found == first(1600, module(prepared))
    assert 4 <= max(sizes) <= 7 + 2  # two may be on their way at once


@pytest.mark.parametrize("name", ["bucket", "credentials", "permission", "manifest", "cache", "size"])
def test_fit_refuses_what_cannot_be_read_in_a_line_before_it_starts(
    name: str, server: s3_server.S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    url, said = URL, ""
    if name == "bucket":
        url, said = "s3://no-bucket/data", "reading s3://no-bucket/data/manifest.json: there is no such bucket"
    elif name == "credentials":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        said = f"reading {url}/manifest.json: no credentials: set AWS_ACCESS_KEY_ID"
    elif name == "permission":
        with server.checking_credentials():
            said = refusal(["fit", *arguments(URL, tmp_path / "runs")], capsys)
        assert said.startswith(f"reading {url}/manifest.json: the store does not know these credentials")
        return
    elif name == "manifest":
        url, said = "s3://bucket/none", "s3://bucket/none holds no prepared data (manifest.json): run `lrtrain prepare"
    elif name == "cache":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("LITDATA_CACHE_DIR", str(tmp_path / "file"))
        said = f"cannot write {tmp_path}/file"
    else:
        monkeypatch.setenv("LRTRAIN_CACHE_SIZE", "much")
        said = "LRTRAIN_CACHE_SIZE much: give an amount of memory"
    assert refusal(["fit", *arguments(url, tmp_path / "runs")], capsys).startswith(said)
