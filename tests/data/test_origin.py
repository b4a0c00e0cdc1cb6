"""A data set knows what it was made from: another file, tokenizer or format than then is named, not passed over."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from lrtrain.data.datamodule import TokenDataModule
from lrtrain.data.manifest import Manifest
from lrtrain.data.preparation import PrepareSpec, prepare
from lrtrain.data.tokenizer import train_tokenizer
from lrtrain.runtime.errors import UserError
from sources import TEXTS


def lines(texts: list[str]) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def replace_at_the_same_size(folder: Path) -> None:
    content = (folder / "a.jsonl").read_text()
    (folder / "a.jsonl").write_text(content.replace("word1", "word2"))


def link_elsewhere(folder: Path) -> None:
    (folder.parent / "other").write_text(lines(TEXTS[:7]))
    (folder / "b.jsonl").unlink()
    (folder / "b.jsonl").symlink_to("../other")


CHANGES: dict[str, Callable[[Path], object]] = {
    r"d\.jsonl is new;": lambda folder: (folder / "d.jsonl").write_text(lines(["more"])),
    r"a\.jsonl is gone;": lambda folder: (folder / "a.jsonl").unlink(),
    r"a\.jsonl has changed;": replace_at_the_same_size,
    r"b\.jsonl has changed;": link_elsewhere,
    r"d\.jsonl is new, a\.jsonl is gone;": lambda folder: (folder / "a.jsonl").rename(folder / "d.jsonl"),
    r"n0\.txt is new, n1\.txt is new, n2\.txt is new and 2 more;": lambda folder: [
        (folder / f"n{i}.txt").write_text("x") for i in range(5)
    ],
}


@pytest.fixture
def spec(source: list[str], tokenizer: str, tmp_path: Path) -> PrepareSpec:
    shutil.copy(tokenizer, tmp_path / "own.json")
    return PrepareSpec(source, tokenizer=str(tmp_path / "own.json"))


@pytest.fixture
def made(spec: PrepareSpec, tmp_path: Path) -> str:
    prepare(spec, str(tmp_path / "out"))
    return str(tmp_path / "out")


@pytest.mark.parametrize("words", CHANGES)
def test_other_sources_are_named_by_prepare_and_by_a_fit(spec: PrepareSpec, made: str, words: str) -> None:
    TokenDataModule(made, prepare=spec).prepare_data()
    CHANGES[words](Path(spec.source[0]))
    for again in (lambda: prepare(spec, made), TokenDataModule(made, prepare=spec).prepare_data):
        with pytest.raises(UserError, match=f"was made from other sources: {words} delete it .*prepare null") as raised:
            again()
        assert "\n" not in str(raised.value)
    TokenDataModule(made).prepare_data()


def test_another_tokenizer_under_the_same_name_is_named(spec: PrepareSpec, made: str) -> None:
    assert spec.tokenizer
    train_tokenizer(["other text"] * 9 + TEXTS[:50], 300).save(spec.tokenizer)
    with pytest.raises(UserError, match=r"tokenizer \S*own.json has changed; delete it"):
        prepare(spec, made)


def test_another_format_under_the_same_name_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from lrtrain.data.formats import Text\nclass Log(Text):\n    suffixes = ('.log',)\n"
    (tmp_path / "log_format.py").write_text(code)
    (tmp_path / "x.log").write_text("\n\n".join(f"{i} " * 3000 for i in range(60)))
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = PrepareSpec([f"{tmp_path}/x.log"], train_vocab_size=257, val_fraction=0.2, formats=["log_format.Log"])
    prepare(spec, str(tmp_path / "out"))
    (tmp_path / "log_format.py").write_text(f"{code}    at_least = 9\n")
    with pytest.raises(UserError, match=r"the format log_format\.Log has changed"):
        prepare(spec, str(tmp_path / "out"))


def test_a_store_is_asked_by_prepare_and_not_by_a_fit(tmp_path: Path, tokenizer: str) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/origin/a.jsonl", lines(TEXTS).encode())
    spec, out = PrepareSpec(["memory://origin"], tokenizer=tokenizer), str(tmp_path / "out")
    assert prepare(spec, out) == prepare(spec, out)
    memory.pipe("/origin/b.jsonl", lines(TEXTS).encode())
    TokenDataModule(out, prepare=spec).prepare_data()
    with pytest.raises(UserError, match=r"memory://\S*/origin/b\.jsonl is new"):
        prepare(spec, out)


def test_what_was_moved_as_a_whole_or_read_only_is_the_same(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("text").mkdir()
    Path("text/a.jsonl").write_text(lines(TEXTS))
    spec = PrepareSpec(["text/*.jsonl"], tokenizer=tokenizer)
    manifest = prepare(spec, "out")
    monkeypatch.chdir((tmp_path / "here").rename(tmp_path / "there"))
    Path("out/.lock").unlink()
    assert prepare(spec, "out") == manifest
    assert not Path("out/.lock").exists()


def test_a_fit_where_the_sources_are_not_takes_the_data_and_says_so(
    spec: PrepareSpec, made: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(spec.source[0])
    TokenDataModule(made, prepare=spec).prepare_data()
    assert "is taken as it is, without comparing it with its sources: source " in capsys.readouterr().out
    with pytest.raises(UserError, match="matches no file"):
        prepare(spec, made)


def test_a_data_set_that_does_not_name_its_files_is_not_trusted(spec: PrepareSpec, made: str) -> None:
    manifest = json.loads(Path(made, "manifest.json").read_text())
    assert [os.path.basename(name) for name, _, _ in manifest.pop("files")] == ["a.jsonl", "b.jsonl", "c.parquet"]
    Path(made, "manifest.json").write_text(json.dumps(manifest))
    assert Manifest.load(made).files == []
    with pytest.raises(UserError, match="does not name them; delete it"):
        prepare(spec, made)
