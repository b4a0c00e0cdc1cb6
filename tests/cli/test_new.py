"""`lrtrain new`: what it writes and refuses. That what it writes runs is tests/project/test_extending.py's."""

from pathlib import Path

import pytest

from commandline import refusal
from lrtrain.cli.main import main
from lrtrain.cli.new import TEMPLATES

KINDS = sorted(folder.name for folder in TEMPLATES.iterdir())


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_writes_its_part_under_the_name_that_it_is_given(
    kind: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", kind, "fast_thing"]) == 0
    written = {path.name: path.read_text() for path in folder.iterdir()}
    assert {"fast_thing.yaml", "test_fast_thing.py"} <= written.keys() <= {*written, "fast_thing.py"}
    assert all(word not in content for content in written.values() for word in (f"my_{kind}", f"My{kind.title()}"))
    if kind != "experiment":
        assert "class FastThing" in written["fast_thing.py"]
        assert "fast_thing.FastThing" in written["fast_thing.yaml"]
    for name, content in written.items():
        if name.endswith(".py"):
            compile(content, name, "exec")
    assert "fast_thing.yaml" in capsys.readouterr().out


def test_nothing_is_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "test_mine.py").write_text("kept")
    assert "test_mine.py exists here" in refusal(["new", "optimizer", "mine"], capsys)
    assert [path.name for path in folder.iterdir()] == ["test_mine.py"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optimiser", "mine"], "did you mean optimizer?"),
        (["optimizer", "tokenizers"], "there is a module of that name"),
        (["optimizer", "random"], "there is a module of that name"),
        (["optimizer", "my-own"], "module's name"),
        (["optimizer", "class"], "module's name"),
        (["optimizer", "../mine"], "module's name"),
        (["optimizer"], "required: name"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refusal(["new", *arguments], capsys)
    assert not list(folder.iterdir())
