"""Bad data, checkpoints and disks get one line, exit code 2, and leave nothing that looks whole."""

import contextlib
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from torch.utils.data import DataLoader

import toy
from commandline import PREFIX, arguments, refusal
from lrtrain.checkpoint.single_file import read_whole, write_whole
from lrtrain.cli.main import main
from lrtrain.data import datamodule

Refuse = Callable[..., str]
CHUNK = "train/chunk-00000.bin"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def checkpoint(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run of two steps."""
    runs = tmp_path_factory.mktemp("runs")
    assert main(["fit", *arguments(shards, runs)]) == 0
    return runs / "quickstart/0001/checkpoints/step-00000002.ckpt"


@pytest.fixture
def refuse(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Refuses a command, and looks whether a run was left."""

    def run(*flags: str, command: str = "fit", data: Path = shards) -> str:
        line = refusal([command, *arguments(data, tmp_path / "runs", *flags)], capsys)
        assert not list(tmp_path.glob("runs/*")), "something that looks like a run was left"
        return line

    return run


# Data


def prepare_from(source: Path, out: Path, **changes: Any) -> list[str]:
    """Flags with which fit prepares a source."""
    request = {"source": [str(source)], "train_vocab_size": 300, **changes}
    return [f"--data.path={out}", f"--data.prepare={json.dumps(request)}"]


def test_missing_data_names_the_folder_and_the_command(tmp_path: Path, refuse: Refuse) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("absent", "empty"):
        line = refuse(data=tmp_path / folder)
        assert line.startswith(f"{tmp_path / folder} holds no prepared data")
        assert "lrtrain prepare" in line


@pytest.mark.parametrize(
    ("file", "changes", "line"),
    [
        ("absent.txt", {}, "source {} matches no file"),
        ("empty.txt", {}, "source {} holds no text"),
        ("column.parquet", {}, "{}: the table has no column 'text', it has txt"),
        ("cut.parquet", {}, "cannot read {}: Parquet"),
        ("text.jsonl", {"text_column": "body"}, "{}: line 1 has no column 'body', it has text"),
        ("text.jsonl", {"train_vocab_size": None, "tokenizer": "column.parquet"}, "column.parquet is not a tokenizer"),
        ("text.jsonl", {"train_vocab_size": 10}, "train_vocab_size is 10"),
        ("text.jsonl", {"tokenizer": "t.json"}, "exactly one of tokenizer and train_vocab_size"),
    ],
)
def test_sources_that_cannot_be_prepared_are_named_and_no_data_set_is_left(
    file: str, changes: dict[str, Any], line: str, tmp_path: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("")
    Path("text.jsonl").write_text('{"text": "a b c"}\n' * 50)
    pyarrow.parquet.write_table(pyarrow.table({"txt": ["a b c"] * 50}), "column.parquet")
    Path("cut.parquet").write_bytes(Path("column.parquet").read_bytes()[:-30])
    source, out = tmp_path / file, tmp_path / "out"
    assert refuse(*prepare_from(source, out, **changes)).startswith(line.format(source))
    assert not (out / "manifest.json").exists()


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda data: (data / CHUNK).write_bytes((data / CHUNK).read_bytes()[:100]), "shard {}/" + CHUNK + " is trunc"),
        (lambda data: (data / CHUNK).unlink(), "shard {}/" + CHUNK + " is missing"),
        (lambda data: (data / "manifest.json").write_text("{"), "{}/manifest.json is damaged"),
        (lambda data: (data / "tokenizer.json").unlink(), "cannot read {}/tokenizer.json (FileNotFoundError)"),
        (
            lambda data: (data / "tokenizer.json").write_text("{}"),
            "{}/tokenizer.json is not the tokenizer of the shards",
        ),
    ],
    ids=["truncated shard", "missing shard", "manifest", "missing tokenizer", "other tokenizer"],
)
def test_a_damaged_data_set_is_named_before_training(
    damage: Callable[[Path], None], line: str, shards: Path, tmp_path: Path, refuse: Refuse
) -> None:
    data = shutil.copytree(shards, tmp_path / "data")
    damage(data)
    assert refuse(data=data).startswith(line.format(data))


def test_a_shard_that_breaks_while_it_is_read_is_named(
    shards: Path, tmp_path: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datamodule, "CHECKSUM_BYTES", 0)  # so that the damage is only met in reading
    data = shutil.copytree(shards, tmp_path / "data")
    (data / CHUNK).write_bytes(b"\xff" * (data / CHUNK).stat().st_size)
    assert refuse(data=data).startswith(f"shard {data / CHUNK} is corrupt")


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--model.decoder.vocab_size=299", "the model's vocab_size is 299 and the data in"),
        ("--data.block_size=100000", "the train split of"),
        ("--data.batch_size=100000", "the train split of"),
    ],
)
def test_data_that_does_not_fit_the_model_is_refused(flag: str, line: str, refuse: Refuse) -> None:
    assert refuse(flag).startswith(line)
    assert "__old__setattr__" not in vars(DataLoader)  # which an error in train_dataloader() leaves behind


# Checkpoints


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
@pytest.mark.parametrize("damage", ["another architecture", "truncated", "absent", "a folder"])
def test_a_checkpoint_that_cannot_be_used_is_named(
    command: str, damage: str, checkpoint: Path, tmp_path: Path, refuse: Refuse
) -> None:
    path = tmp_path / "a.ckpt"
    if damage == "a folder":
        path.mkdir()
    elif damage != "absent":
        path.write_bytes(checkpoint.read_bytes()[: -100 if damage == "truncated" else None])
    flags = ["--model.decoder.width=32"] if damage == "another architecture" else []
    line = refuse(f"--ckpt_path={path}", *flags, command=command)
    assert str(path) in line
    expected = {
        "another architecture": "its decoder.embedding.weight is (300, 64), the model's is (300, 32)",
        "truncated": "it is cut short at",
        "absent": "there is no such file",
        "a folder": "it is a folder",
    }
    assert expected[damage] in line


def test_a_checkpoint_of_another_optimizer_is_named(checkpoint: Path, refuse: Refuse) -> None:
    flags = ("--model.optimizers.hidden=torch.optim.Muon", "--trainer.max_steps=4")
    line = refuse(f"--ckpt_path={checkpoint}", *flags)
    assert line.startswith(
        f"cannot resume from {checkpoint}: the checkpoint's optimizer for decoder.blocks.0.attention"
    )
    assert "is Spectron, the configuration's is Muon; compare with the config.yaml of its run" in line


def test_validate_without_any_checkpoint_says_so(refuse: Refuse) -> None:
    assert "no checkpoint under" in refuse(command="validate")


def test_generate_names_what_it_cannot_use(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = read_whole(checkpoint)
    own = content["lrtrain"]
    config = yaml.safe_load(own["config"])
    config["model"]["decoder"]["init_args"]["width"] = 32
    write_whole({**content, "lrtrain": {**own, "config": yaml.safe_dump(config)}}, tmp_path / "other.ckpt")
    write_whole({**content, "lrtrain": {**own, "tokenizer": None}}, tmp_path / "mute.ckpt")
    write_whole({**content, "lrtrain": {}}, tmp_path / "foreign.ckpt")
    (tmp_path / "cut.ckpt").write_bytes(checkpoint.read_bytes()[:-100])
    (tmp_path / "text.ckpt").write_text("hello")
    (tmp_path / "folder").mkdir()
    for name, phrase in {
        "other.ckpt": "is of another architecture: its embedding.weight is (300, 64), the model's is (300, 32)",
        "mute.ckpt": "holds no tokenizer: use one of lrtrain fit",
        "foreign.ckpt": "holds no config",
        "cut.ckpt": "it is cut short",
        "text.ckpt": "it is not a checkpoint",
        "absent.ckpt": "does not exist",
        "folder": "no whole checkpoint under",
    }.items():
        line = refusal(["generate", str(tmp_path / name), "--prompt", "a"], capsys)
        assert phrase in line
        assert str(tmp_path / name) in line


# The disk


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel refuses to write on: EFBIG here, as ENOSPC where a disk is full."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_a_disk_that_is_full_at_the_start_leaves_no_run(refuse: Refuse, tmp_path: Path) -> None:
    with largest_file(1000):
        line = refuse()
    assert line.startswith(f"cannot write into {tmp_path}/runs/quickstart/0001: File too large; make room")


def test_a_disk_that_fills_up_leaves_the_older_checkpoint_alone(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *arguments(shards, tmp_path)]) == 0
    with largest_file(300_000):
        line = refusal(["fit", *arguments(shards, tmp_path, "--ckpt_path=last", steps=4)], capsys)
    folder = tmp_path / "quickstart/0001/checkpoints"
    assert line.startswith(f"cannot write checkpoint {folder}/step-00000004.ckpt: File too large (it needs 0.8 MB")
    assert [path.name for path in folder.iterdir()] == ["step-00000002.ckpt"]


def test_a_real_process_ends_with_code_2_and_one_line() -> None:
    command = [sys.executable, "-m", "lrtrain", "generate", "/nowhere", "--prompt", "a"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert process.returncode == 2
    assert process.stdout == ""
    assert (
        process.stderr == f"{PREFIX}/nowhere does not exist: name a .ckpt file, a run, a run directory or a folder of "
        "runs\n"
    )
