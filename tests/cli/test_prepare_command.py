"""`lrtrain prepare` at the command line: a line for every mistake, and what it says in the end."""

from pathlib import Path

import pytest

from lrtrain.cli.prepare import main
from lrtrain.runtime.errors import UserError


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "exactly one of tokenizer and train_vocab_size"),
        (["--train-vocab-size", "300", "--tokenizer", "x.json"], "exactly one"),
        (["--train-vocab-size", "10"], "257"),
        (["--train-vocab-size", "300", "--val-fraction", "0"], "val_fraction"),
        (["--train-vocab-size", "300", "--val-fraction", "1.5"], "val_fraction"),
        (["--train-vocab-size", "300", "--max-tokens", "0"], "max_tokens"),
        (["--train-vocab-size", "300", "--max-tokens", "3"], "max_tokens"),
        (["--train-vocab-size", "300", "--workers", "-1"], "workers"),
        (["--tokenizer", "missing.json"], r"missing\.json does not exist"),
        (["--train-vocab-size", "300", "--text-column", "body"], "has no column 'body', it has text"),
    ],
)
def test_a_wrong_option_gets_one_line_and_leaves_nothing_to_train_on(
    tmp_path: Path, source: list[str], arguments: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words) as raised:
        main(["--out", str(tmp_path / "out"), "--source", *source, *arguments])
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("text", ["", " \n\n \n", "\ufeff"])
def test_a_source_without_text_gets_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "empty.txt").write_text(text)
    with pytest.raises(UserError, match="holds no text"):
        main(["--out", str(tmp_path / "out"), "--source", str(tmp_path / "empty.txt"), "--train-vocab-size", "300"])
    assert not (tmp_path / "out" / "train").exists()


def test_an_output_that_cannot_be_written_gets_one_line(tmp_path: Path, source: list[str]) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot write"):
            main(["--out", str(out), "--source", *source, "--train-vocab-size", "300"])


def test_the_command_says_what_it_made(tmp_path: Path, source: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "out"), "--source", *source, "--train-vocab-size", "300"]) == 0
    said = capsys.readouterr().out
    assert "3 files" in said.splitlines()[0]
    for word in ("documents", "bytes a token", "vocabulary 300", "uint16", str(tmp_path / "out")):
        assert word in said


def test_a_source_that_is_named_by_a_flag_of_its_own_is_one_more(
    tmp_path: Path, source: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    each = [part for one in source for part in ("--source", one)]
    assert main(["--out", str(tmp_path / "out"), *each, "--train-vocab-size", "300"]) == 0
    assert "3 files" in capsys.readouterr().out.splitlines()[0]
