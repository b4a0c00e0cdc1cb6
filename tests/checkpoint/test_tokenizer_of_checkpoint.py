"""A checkpoint goes with the tokenizer that it was trained with: data of another one is refused, whatever its size."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

import toy
from commandline import arguments, refusal
from lrtrain.checkpoint.checkpoint_io import check_tokenizer
from lrtrain.cli.main import main
from lrtrain.data.preparation import PrepareSpec, prepare
from lrtrain.runtime.errors import UserError


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of a tokenizer of the same size."""
    folder = tmp_path_factory.mktemp("others")
    lines = (f'{{"text": "{i} quick brown foxes jump over {i}"}}\n' for i in range(999))
    (folder / "text.jsonl").write_text("".join(lines))
    spec = PrepareSpec(source=[str(folder / "text.jsonl")], train_vocab_size=toy.VOCABULARY, val_fraction=0.2)
    prepare(spec, str(folder / "shards"))
    return folder / "shards"


def test_data_of_another_tokenizer_of_the_same_size_is_refused_and_leaves_the_run_as_it_was(
    shards: Path, others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *arguments(shards, tmp_path)]) == 0
    run = tmp_path / "quickstart/0001"
    file = run / "checkpoints/step-00000002.ckpt"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for command, *more in (
        ["validate"],
        ["test", f"--ckpt_path={file}"],
        ["fit", "--ckpt_path=last"],
        ["fit", "--name=branch", f"--ckpt_path={file}"],
    ):
        line = refusal([command, *arguments(others, tmp_path, *more, steps=4)], capsys)
        assert line.startswith(f"checkpoint {file} is of another tokenizer than the data: its token ")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_same_tokenizer_may_be_written_otherwise(shards: Path) -> None:
    text = (shards / "tokenizer.json").read_text()
    check_tokenizer(text, text, "a.ckpt")
    check_tokenizer(text, json.dumps(json.loads(text), indent=4), "a.ckpt")
    larger = Tokenizer.from_str(text)
    larger.add_tokens(["<new>"])
    with pytest.raises(UserError, match=r"a\.ckpt is .*: its token \d+ is None, the data's is '<new>'"):
        check_tokenizer(text, larger.to_str(), "a.ckpt")
    spaced = json.loads(text)
    spaced["pre_tokenizer"]["add_prefix_space"] = True
    with pytest.raises(UserError, match="its settings differ"):
        check_tokenizer(text, json.dumps(spaced), "a.ckpt")
