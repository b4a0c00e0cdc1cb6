"""An export to a store (S3 by moto): a model when all of it is there, never in another's place."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import s3_server
import toy
from commandline import arguments, refusal
from lrtrain.cli.main import main
from lrtrain.config.export_target import UNFINISHED
from lrtrain.runtime import stores
from lrtrain.runtime.errors import UserError


@pytest.fixture(scope="module")
def server() -> Iterator[s3_server.S3Server]:
    with s3_server.running() as server:
        server.bucket("bucket")
        yield server


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _environment(server: s3_server.S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {**server.environment(), "LRTRAIN_STORE_WAIT": "5", "HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)


def test_a_run_copies_its_folder_and_the_command_writes_the_same_once(
    shards: Path, server: s3_server.S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = ["fit", *arguments(shards, Path("runs"), "--export.format=merged", "--checkpoints.path=s3://bucket/runs")]
    assert main(fit) == 0
    beside = "s3://bucket/runs/quickstart/0001/checkpoints/step-00000002.hf"
    assert f"copied to       {beside}" in capsys.readouterr().out
    here = {
        file.name: file.read_bytes() for file in Path("runs/quickstart/0001/checkpoints/step-00000002.hf").iterdir()
    }
    assert {name: stores.read(stores.joined(beside, name)) for name in stores.stored(beside)} == here

    assert main(["export", "runs", "--out", "s3://bucket/model"]) == 0
    assert "wrote           s3://bucket/model" in capsys.readouterr().out
    assert stores.stored("s3://bucket/model").keys() == here.keys()
    assert stores.read("s3://bucket/model/model.safetensors") == here["model.safetensors"]
    assert list((tmp_path / "home/.cache/lrtrain/staging").iterdir()) == []
    again = refusal(["export", "runs", "--out", "s3://bucket/model"], capsys)
    assert "s3://bucket/model: README.md exists already there; name a new URL" in again

    # The store was away at the run's end: the same command brings the folder there.
    stores.delete(f"{beside}/config.json")
    assert main([*fit, "--ckpt_path=last"]) == 0
    assert stores.read(f"{beside}/config.json") == here["config.json"]


def test_what_is_half_there_is_no_model_and_the_same_command_goes_on(
    shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *arguments(shards, Path("runs"))]) == 0
    upload = stores.upload

    def cut(file: Path, url: str) -> None:
        if file.name == "model.safetensors":
            raise UserError(f"no permission: {url}")
        upload(file, url)

    command = ["export", "runs", "--out", "s3://bucket/half"]
    with monkeypatch.context() as patched:
        patched.setattr(stores, "upload", cut)
        assert "no permission: s3://bucket/half/model.safetensors" in refusal(command, capsys)
    assert "config.json" not in stores.stored("s3://bucket/half")
    assert UNFINISHED in stores.stored("s3://bucket/half")
    stores.write("s3://bucket/half/model-00009-of-00009.safetensors", b"of an earlier, larger one")
    assert main(command) == 0
    assert {"config.json", "model.safetensors"} <= stores.stored("s3://bucket/half").keys()
    assert not {UNFINISHED, "model-00009-of-00009.safetensors"} & stores.stored("s3://bucket/half").keys()

    stores.write("s3://bucket/foreign/notes.txt", b"somebody's")
    assert "notes.txt exists already there" in refusal(["export", "runs", "--out", "s3://bucket/foreign"], capsys)


def test_a_store_that_is_away_ends_it_with_75_and_leaves_nothing(
    shards: Path, server: s3_server.S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["fit", *arguments(shards, Path("runs"))]) == 0
    monkeypatch.setenv("LRTRAIN_STORE_WAIT", "0.1")
    with server.away():
        assert main(["export", "runs", "--out", "s3://bucket/away"]) == 75
    assert not os.path.exists(tmp_path / "home/.cache/lrtrain/staging")
