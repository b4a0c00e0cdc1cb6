"""A run is named alike everywhere; its end and its signal say what to do next, by commands that work as they stand."""

import os
import re
import shlex
from pathlib import Path

import pytest

import toy
from commandline import arguments, refusal
from lrtrain.cli.main import main
from lrtrain.training.summary import CONTINUED


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one run of three steps was trained; `end.txt` is what it printed."""
    folder = tmp_path_factory.mktemp("named")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        toy.shards(folder)
        printed: list[str] = []
        patched.setattr("builtins.print", lambda *text, **_: printed.append(" ".join(map(str, text))))
        assert main(["fit", *arguments("shards", Path("runs"), steps=3)]) == 0
        (folder / "end.txt").write_text("\n".join(printed))
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


CHECKPOINT = "runs/quickstart/0001/checkpoints/step-00000003.ckpt"


@pytest.mark.parametrize("named", ["quickstart", "quickstart/0001", "runs/quickstart", "runs", CHECKPOINT])
def test_validate_takes_a_name_a_folder_or_a_checkpoint_and_says_which(
    named: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", named]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"checkpoint {CHECKPOINT}"
    (loss,) = [line.split()[1] for line in lines if line.startswith("val/loss")]
    assert f"loss {loss}" in (here / "end.txt").read_text()


@pytest.mark.usefixtures("here")
def test_generate_and_export_take_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "quickstart", "--prompt", "norm", "--max-new-tokens", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("norm")
    assert f"generate: reading {CHECKPOINT} …" in printed.err
    assert main(["export", "quickstart", "--out", "whole"]) == 0
    assert f"checkpoint      {CHECKPOINT}\n" in capsys.readouterr().out


@pytest.mark.usefixtures("here")
def test_a_checkpoint_that_was_moved_is_evaluated_by_the_configuration_that_it_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved.ckpt"
    moved.write_bytes(Path(CHECKPOINT).read_bytes())
    assert main(["validate", str(moved)]) == 0
    assert capsys.readouterr().out.startswith(f"checkpoint {moved}\n")


@pytest.mark.usefixtures("here")
def test_a_name_that_is_none_and_two_checkpoints_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(["validate", "quickstrat"], capsys).startswith("quickstrat does not exist: name a .ckpt file, a run")
    line = "quickstart and --ckpt_path both name a checkpoint: give one of them"
    assert refusal(["validate", "quickstart", "--ckpt_path=last"], capsys) == line


def test_the_commands_at_the_end_work_as_they_stand(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (here / "end.txt").read_text()
    commands = dict(re.findall(r"^  (go on|write texts|compare|report|export) +(lrtrain .*)$", text, re.M))
    assert set(commands) == {"go on", "write texts", "compare", "report", "export"}
    assert commands["go on"].endswith("--ckpt_path last --trainer.max_steps 6")
    for purpose in ("write texts", "report", "export"):
        assert main(shlex.split(commands[purpose])[1:]) == 0
    compared = commands["compare"].replace("OTHER", "")
    assert main(shlex.split(compared)[1:]) == 0
    assert os.path.getsize("compare.html")
    assert main(shlex.split(commands["go on"])[1:]) == 0
    assert Path("runs/quickstart/0001/checkpoints/step-00000006.ckpt").exists()
    assert not Path("runs/quickstart/0002").exists()


def test_the_sample_continues_held_out_text(here: Path) -> None:
    from tokenizers import Tokenizer

    text = (here / "end.txt").read_text()
    prompt = text.partition("its continuation\n")[2].partition(CONTINUED)[0].strip()
    assert len(prompt.split()) >= 2
    documents = (here / "text.jsonl").read_text()
    assert prompt in documents
    assert Tokenizer.from_file("shards/tokenizer.json").encode(prompt).ids
