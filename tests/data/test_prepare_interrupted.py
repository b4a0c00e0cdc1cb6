"""Preparations that are killed, run twice at once, or meet a full disk. Real processes."""

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from forked import FORK
from lrtrain.data import encode, shards
from lrtrain.data import preparation as preparing
from lrtrain.data.manifest import Manifest
from lrtrain.data.preparation import PrepareSpec, prepare
from lrtrain.runtime.errors import UserError
from sources import contents, decoded


def run(spec: dict[str, Any], out: str, said: str, settings: dict[str, float]) -> None:
    """What another process does: prepare with small batches, and write what it says, or the UserError, to a file."""
    encode.BATCH_DOCUMENTS = 8
    shards.CHUNK_TOKENS = int(settings.get("chunk", shards.CHUNK_TOKENS))
    preparing.SAVE_SECONDS = settings.get("save_seconds", 0.0)
    if "slow" in settings:
        append = preparing._append
        preparing._append = lambda *arguments: time.sleep(settings["slow"]) or append(*arguments)
    if "limit" in settings:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(settings["limit"]), resource.RLIM_INFINITY))
    with open(said, "w", buffering=1) as file, redirect_stdout(file):
        try:
            prepare(PrepareSpec(**spec), out)
        except UserError as error:
            print(f"UserError: {error}")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[Any, Path]]]:
    """Start a preparation in another process: gives the process and the file of what it says."""
    started: list[Any] = []

    def begin(spec: dict[str, Any], out: Path, **settings: float) -> tuple[Any, Path]:
        said = tmp_path / f"said-{len(started)}"
        process = FORK.Process(target=run, args=(spec, str(out), str(said), settings))
        process.start()
        started.append(process)
        return process, said

    yield begin
    for process in started:
        process.kill()
        process.join()


def kill_at(chunk: Path, process: Any) -> None:
    deadline = time.monotonic() + 60
    while not chunk.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert chunk.exists()


def test_a_killed_preparation_goes_on_where_it_stopped_and_ends_with_the_same_files(
    tmp_path: Path,
    source: list[str],
    start: Callable[..., tuple[Any, Path]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(shards, "CHUNK_TOKENS", 2048)
    spec = {"source": source, "train_vocab_size": 300, "workers": 2}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for chunk in ("chunk-00004.bin", "chunk-00014.bin"):
        process, _ = start(spec, killed, chunk=2048, slow=0.01)
        kill_at(killed / "train" / chunk, process)
        with pytest.raises(UserError, match="not finished"):
            Manifest.load(str(killed))
    (killed / ".progress.pt.tmp").write_bytes(b"half")  # what a kill in mid-save leaves
    with pytest.raises(UserError, match="another request, val_fraction is"):
        prepare(PrepareSpec(source, train_vocab_size=300, val_fraction=0.5), str(killed))
    for out in (killed, whole):
        prepare(PrepareSpec(**spec), str(out))
        assert capsys.readouterr().out.startswith("Going on with" if out == killed else "Preparing")
    assert contents(killed) == contents(whole)


def test_two_processes_that_prepare_at_once_make_one_whole_data_set(
    tmp_path: Path, source: list[str], start: Callable[..., tuple[Any, Path]]
) -> None:
    both = [start({"source": source, "train_vocab_size": 300}, tmp_path / "out", slow=0.03) for _ in range(2)]
    for process, _ in both:
        process.join()
    said = "".join(file.read_text() for _, file in both)
    assert said.count("Preparing") == 1, said
    assert said.count("waiting") == 1, said
    assert "UserError" not in said
    assert decoded(tmp_path / "out", "train")


def test_a_full_disk_gets_one_line_and_the_next_try_goes_on(
    tmp_path: Path, source: list[str], tokenizer: str, start: Callable[..., tuple[Any, Path]]
) -> None:
    spec = {"source": source, "tokenizer": tokenizer}
    process, said = start(spec, tmp_path / "out", limit=20_000)
    process.join()
    assert said.read_text().splitlines()[-1].startswith("UserError: no space left while writing")
    assert not (tmp_path / "out" / "manifest.json").exists()
    prepare(PrepareSpec(**spec), str(tmp_path / "out"))
    prepare(PrepareSpec(**spec), str(tmp_path / "whole"))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_sources_that_changed_during_an_interruption_are_refused(
    tmp_path: Path, source: list[str], start: Callable[..., tuple[Any, Path]]
) -> None:
    process, _ = start({"source": source, "train_vocab_size": 300}, tmp_path / "out", chunk=2048, slow=0.01)
    kill_at(tmp_path / "out" / "train" / "chunk-00003.bin", process)
    with Path(source[0], "a.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(UserError, match=r"have changed.*a\.jsonl"):
        prepare(PrepareSpec(source, train_vocab_size=300), str(tmp_path / "out"))
