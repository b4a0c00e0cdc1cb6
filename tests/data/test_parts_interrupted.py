"""Parts and merges that are killed, run twice at once, or begun anew. Real processes."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forked import FORK
from lrtrain.data import encode, merge, shards
from lrtrain.data import preparation as preparing
from lrtrain.data.manifest import Manifest
from lrtrain.data.preparation import prepare
from lrtrain.data.shares import prepare_share
from lrtrain.data.tokenizer import train_tokenizer
from parted import in_parts, refused, spec_of
from sources import TEXTS, contents

pytestmark = pytest.mark.usefixtures("small_shards")


def small() -> None:
    """In another process: what `small_shards` does here, and every batch is saved."""
    shards.CHUNK_TOKENS, encode.BATCH_DOCUMENTS, preparing.SAVE_SECONDS = 2048, 8, 0.0


def share_in_a_process(text: str, out: str, slow: float) -> None:
    small()
    append = preparing._append
    preparing._append = lambda *arguments: time.sleep(slow) or append(*arguments)
    prepare_share(spec_of(Path(text)), out, 1, 2)


def merge_in_a_process(out: str, slow: float) -> None:
    small()
    read = merge.read_chunk
    merge.read_chunk = lambda *arguments: time.sleep(slow) or read(*arguments)
    merge.merge(out, {})


def kill_at(file: Path, process: Any) -> None:
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert file.exists()


def test_a_killed_part_and_a_killed_merge_go_on_and_end_with_the_same_files(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    prepare_share(spec_of(text), str(out), 0, 2)
    process = FORK.Process(target=share_in_a_process, args=(str(text), str(out), 0.02))
    process.start()
    kill_at(out / "parts" / "00001-of-00002" / "train" / "chunk-00003.bin", process)
    refused(lambda: merge.merge(str(out), {}), "1 of the 2 parts")
    capsys.readouterr()
    prepare_share(spec_of(text), str(out), 1, 2)
    assert capsys.readouterr().out.startswith("Going on with")
    for chunk in ("train/chunk-00004.bin", "val/chunk-00001.bin"):
        process = FORK.Process(target=merge_in_a_process, args=(str(out), 0.02))
        process.start()
        kill_at(out / chunk, process)
        refused(lambda: Manifest.load(str(out)), "not finished")
    merge.merge(str(out), {})
    assert "Going on with" in capsys.readouterr().out
    prepare(spec_of(text), str(tmp_path / "whole"))
    assert contents(out) == contents(tmp_path / "whole")


def interrupted(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, after: int, call: Callable[[], object]) -> None:
    """Make a call that saves its progress all the time, and press Ctrl-C when it calls `where.name` once more."""
    original, left = getattr(where, name), iter(range(after))

    def press(*arguments: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(preparing, "SAVE_SECONDS", 0.0)
        patched.setattr(where, name, press)
        with pytest.raises(KeyboardInterrupt):
            call()


def test_one_machine_begins_anew_where_the_parts_of_an_interrupted_merge_were_deleted(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = in_parts(spec_of(text), tmp_path / "out", 2)
    interrupted(monkeypatch, merge, "read_chunk", 7, lambda: merge.merge(str(out), {}))
    refused(lambda: prepare(spec_of(text), str(out)), "to begin anew delete")
    shutil.rmtree(out / "parts")
    prepare(spec_of(text), str(out))
    prepare(spec_of(text), str(tmp_path / "whole"))
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("begun", ["a part", "the merge"])
def test_what_was_begun_under_another_plan_is_begun_anew(
    tmp_path: Path, text: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch, begun: str
) -> None:
    own, out = tmp_path / "own.json", tmp_path / "out"
    shutil.copy(tokenizer, own)
    spec = spec_of(text, train_vocab_size=None, tokenizer=str(own))
    if begun == "a part":
        interrupted(monkeypatch, preparing, "_append", 9, lambda: prepare_share(spec, str(out), 1, 2))
    else:
        in_parts(spec, out, 2)
        interrupted(monkeypatch, merge, "read_chunk", 7, lambda: merge.merge(str(out), {}))
    (out / "parts" / "plan.json").unlink()
    train_tokenizer(TEXTS[:50], 290).save(str(own))
    in_parts(spec, out, 2)
    merge.merge(str(out), {})
    prepare(spec, str(tmp_path / "whole"))
    assert contents(out) == contents(tmp_path / "whole")


def test_two_processes_at_one_part_make_it_once(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "out"
    both = [FORK.Process(target=share_in_a_process, args=(str(text), str(out), 0.01)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    prepare_share(spec_of(text), str(out), 0, 2)
    merge.merge(str(out), {})
    prepare(spec_of(text), str(tmp_path / "whole"))
    assert contents(out) == contents(tmp_path / "whole")
