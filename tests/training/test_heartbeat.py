"""The file whose age tells whether a run gets on."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from aging import Aging, age, is_new
from commandline import arguments, refusal
from lrtrain.checkpoint.single_file import write_whole
from lrtrain.cli.main import main
from lrtrain.runtime import liveness


@pytest.fixture(autouse=True)
def _stopped() -> Iterator[None]:
    yield
    liveness.stop()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


def test_batches_and_validation_renew_the_file_that_the_environment_names(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "SECONDS", 0.0)
    file = tmp_path / "pod" / "heartbeat"
    file.parent.mkdir()
    file.touch()  # an earlier process's, which a probe would take for this one's
    monkeypatch.setenv("LRTRAIN_HEARTBEAT__FILE", str(file))
    callback = ["--trainer.callbacks=aging.Aging", f"--trainer.callbacks.file={file}"]
    assert main(["fit", *arguments(shards, tmp_path / "runs", *callback, steps=4)]) == 0
    assert Aging.noted == {
        "there at setup": [False],
        "what came before a batch": [True] * 4,
        "the batch alone": [False] * 4,
        "what came before a validation batch": [True] * 4,
        "the last validation batch": [True] * 2,
    }
    assert file.read_bytes() == b""


def test_writing_a_checkpoint_and_preparing_data_renew_it_as_they_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "SECONDS", 0.0)
    file = tmp_path / "heartbeat"
    liveness.start(file)
    age(file)
    write_whole({"weights": torch.zeros(3)}, tmp_path / "step-00000001.ckpt")
    assert is_new(file)
    age(file)
    toy.shards(tmp_path)
    assert is_new(file)


def test_it_is_touched_once_a_second_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, now = tmp_path / "heartbeat", 100.0
    monkeypatch.setattr(liveness.time, "monotonic", lambda: now)
    liveness.start(file)
    assert not file.exists(), "it is there from the first beat on"
    renewed = []
    for now in (100.0, 100.5, 100.9, 101.0, 101.1):  # noqa: B007
        age(file)
        liveness.beat()
        renewed.append(is_new(file))
    assert renewed == [True, False, False, True, False]


def test_a_file_that_can_no_longer_be_touched_is_said_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(liveness, "SECONDS", 0.0)
    file = tmp_path / "pod" / "heartbeat"
    liveness.start(file)
    file.parent.rmdir()
    for _ in range(3):
        liveness.beat()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"heartbeat: cannot touch {file}: No such file or directory")
    file.parent.mkdir()
    liveness.beat()
    assert file.exists()


def test_a_disk_without_room_ends_nothing_at_the_start_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "touch", full)
    liveness.start(tmp_path / "heartbeat")
    liveness.beat()
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("", "Is a directory"),
        ("below/a/file", "Not a directory"),
        ("text", "holds something, and a heartbeat is empty: name a file of its own"),
    ],
)
def test_a_file_that_cannot_be_one_is_refused_and_nothing_is_lost(
    place: str, said: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "below").touch()
    (tmp_path / "text").write_text("mine")
    fit = arguments(shards, tmp_path / "runs", f"--heartbeat.file={tmp_path / place}")
    line = refusal(["fit", *fit], capsys)
    assert line.startswith("heartbeat.file: ")
    assert said in line
    assert (tmp_path / "text").read_text() == "mine"
    assert not [*(tmp_path / "runs").glob("*")], "a refused run leaves nothing"
