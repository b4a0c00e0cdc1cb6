"""Data on s3:// (moto on loopback): the stream of local data, through outages, and what is wrong with it named."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from torch import distributed

import s3_server
from checkpoint_state import assert_same_state
from commandline import PREFIX, RECIPE, arguments, refusal
from lrtrain.cli.main import main
from lrtrain.data import shard_cache
from lrtrain.data.datamodule import TokenDataModule
from lrtrain.runtime import stores
from lrtrain.runtime.errors import TemporaryError, UserError
from ranks import command_on_ranks, on_ranks
from token_streams import BLOCK, end_workers, first, module, rows

_end_workers = pytest.fixture(autouse=True)(end_workers)
URL = "s3://bucket/data"
STEPS = 60
FSDP = RECIPE.parent / "parallel" / "fsdp.yaml"


@pytest.fixture(scope="module")
def server(prepared: Path) -> Iterator[s3_server.S3Server]:
    with s3_server.running() as server, pytest.MonkeyPatch.context() as patched:
        for name, value in server.environment().items():
            patched.setenv(name, value)
        server.bucket("bucket")
        stores.upload_folder(prepared, URL, "manifest.json")
        yield server


@pytest.fixture(autouse=True)
def cache(server: s3_server.S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LITDATA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("LRTRAIN_STORE_WAIT", "1")
    return tmp_path / "cache"


@pytest.fixture
def other(server: s3_server.S3Server, prepared: Path, request: pytest.FixtureRequest) -> str:
    """A copy of the data set that a test may spoil."""
    url = f"s3://bucket/{abs(hash(request.node.name))}"
    stores.upload_folder(prepared, url, "manifest.json")
    return url


@pytest.fixture
def away_after(server: s3_server.S3Server, cache: Path) -> Iterator[Callable[..., None]]:
    """Stops the server when so many shards of training are in the cache, for good or for some seconds."""
    threads: list[threading.Thread] = []

    def act(shards: int, seconds: float | None) -> None:
        while len([*cache.glob("*/chunk-*.bin")]) < shards:
            time.sleep(0.005)
        server.stop()
        if seconds is not None:
            time.sleep(seconds)
            server.start()

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
            server.start()


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


def test_fit_saves_at_an_outage_ends_with_75_and_resumes_exactly(
    server: s3_server.S3Server, prepared: Path, tmp_path: Path, away_after: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    more = ["--data.batch_size=8", "--trainer.val_check_interval=1000", "--trainer.num_sanity_val_steps=0"]
    assert main(["fit", *arguments(prepared, tmp_path / "whole", *more, steps=STEPS)]) == 0
    runs = tmp_path / "runs"
    argv = ["fit", *arguments(URL, runs, *more, steps=STEPS)]
    away_after(3)
    assert main(argv) == 75
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(f"{PREFIX}downloading {URL}/train/chunk-")
    (saved,) = runs.rglob("*.ckpt")
    assert 8 <= int(saved.stem[5:]) < STEPS
    server.start()
    assert main([*argv, "--ckpt_path=last"]) == 0
    name = f"step-{STEPS:08d}.ckpt"
    (one,), (other,) = runs.rglob(name), (tmp_path / "whole").rglob(name)
    assert_same_state(one, other)


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param("--trainer.strategy=ddp", id="ddp"),
        pytest.param(f"--config={FSDP}", id="fsdp", marks=pytest.mark.slow),
    ],
)
def test_all_ranks_end_at_an_outage_and_leave_a_checkpoint(
    strategy: str, server: s3_server.S3Server, tmp_path: Path, away_after: Any
) -> None:
    flags = [strategy, "--trainer.devices=2", "--data.batch_size=8"]
    flags += ["--trainer.val_check_interval=1000", "--trainer.num_sanity_val_steps=0"]
    away_after(3)
    ended = command_on_ranks(2, ["fit", *arguments(URL, tmp_path, *flags, steps=2000)])
    assert [code for code, _, _ in ended] == [75, 75]
    lines = [line for _, _, err in ended for line in err.splitlines() if line.startswith(PREFIX)]
    assert len(lines) == 1
    assert lines[0].startswith(f"{PREFIX}downloading {URL}/train/chunk-")
    assert len([*tmp_path.rglob("step-*.ckpt")]) == 1


def mixed_rank(paths: list[str]) -> tuple[str, str, list[Any]]:
    """What ends a process that reads until something does, local data on one and remote on the other."""
    rank = int(os.environ["RANK"])
    distributed.init_process_group("gloo")
    seen: list[Any] = []
    try:
        data = TokenDataModule(paths[rank], BLOCK, batch_size=4)
        data.prepare_data()
        data.setup("fit")
        for batch in data.train_dataloader():
            seen += rows([batch])
            distributed.barrier()  # as a training step would
        return "none", "", seen
    except UserError as error:
        return type(error).__name__, str(error), seen
    finally:
        distributed.destroy_process_group()


def test_processes_with_local_and_with_remote_data_read_one_stream_and_end_together(
    prepared: Path, away_after: Any
) -> None:
    away_after(3)
    (kind, line, seen), (other_kind, other_line, other_seen) = on_ranks(2, mixed_rank, [str(prepared), URL])
    assert (kind, other_kind) == ("TemporaryError", "TemporaryError")
    assert line == other_line
    together = [row for i in range(0, len(seen), 4) for part in (seen, other_seen) for row in part[i : i + 4]]
    assert len(together) >= 32
    assert together == first(len(together), module(prepared, batch_size=8))


def test_processes_that_were_given_different_data_are_refused(prepared: Path, other: str) -> None:
    manifest = json.loads(stores.read(f"{other}/manifest.json"))
    manifest["train"]["chunks"].pop()
    stores.write(f"{other}/manifest.json", json.dumps(manifest).encode())
    ended = on_ranks(2, mixed_rank, [str(prepared), other])
    assert [kind for kind, _, _ in ended] == ["UserError", "UserError"]
    assert all("data.path: the processes were given different data" in line for _, line, _ in ended)
    ended = on_ranks(2, mixed_rank, [str(prepared), f"{prepared}-none"])
    assert {line for _, line, _ in ended} == {ended[0][1]}
    assert "holds no prepared data" in ended[0][1]
