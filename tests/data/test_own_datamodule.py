"""A LightningDataModule of the user's own, by class path, beside the YAML: trained with, evaluated, planned."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import toy
from commandline import refusal
from lrtrain.cli.main import main

CODE = """
import os
import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

class Counted(Dataset):
    def __init__(self, tokens, log):
        self.tokens, self.log = tokens, log

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        with open(f"{self.log}-{os.environ.get('LOCAL_RANK', 0)}", "a") as log:
            log.write(f"{index}\\n")
        return self.tokens[index]

class MyData(L.LightningDataModule):
    def __init__(self, log: str, batch_size: int = 4, block_size: int = 16) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(300, (48, block_size + 1), generator=generator)
        self.log, self.batch_size = log, batch_size

    def train_dataloader(self):
        return DataLoader(Counted(self.tokens, self.log), self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.tokens, self.batch_size)
"""
YAML = """
data:
  class_path: own_datamodule.MyData
  init_args:
    log: seen
"""
MODEL = [*toy.MODEL, *toy.TRAINER, "--trainer.logger=false", "--trainer.max_steps=3", "--data.block_size=16"]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a toy run with the module beside its YAML, from the folder that holds both."""
    (tmp_path / "own_datamodule.py").write_text(CODE)
    (tmp_path / "own.yaml").write_text(YAML)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # and no longer than this test
    monkeypatch.delitem(sys.modules, "own_datamodule", raising=False)
    return ["--config", "quickstart", "--config", "own.yaml", *MODEL]


def test_it_trains_evaluates_and_says_what_is_left_out(recipe: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *recipe, "--data.batch_size=4"]) == 0
    said = capsys.readouterr().out
    for word in ("data own_datamodule.MyData:", "no bits per byte", "no tokenizer", "no record of the data"):
        assert word in said
    assert main(["validate", *recipe]) == 0
    said = capsys.readouterr().out
    assert "val/loss" in said
    assert "bits_per_byte" not in said
    assert "holds no tokenizer" in refusal(["generate", "--prompt", "x"], capsys)


def test_its_arguments_are_keys_of_the_configuration(recipe: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(["fit", *recipe, "--data.bach_size=4"], capsys) == (
        "--data.bach_size: unknown key; did you mean batch_size?"
    )
    assert "expected int, got many" in refusal(["fit", *recipe, "--data.batch_size=many"], capsys)
    wrong = ["fit", "--config", "quickstart", *MODEL, "--data"]
    assert "no module own_data" in refusal([*wrong, "own_data.MyData"], capsys)
    assert "did you mean MyData?" in refusal([*wrong, "own_datamodule.MiData"], capsys)


def test_a_batch_that_is_no_tensor_of_tokens_is_refused(recipe: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    wanted = "data: a batch is an int64 tensor (sequences, tokens + 1), and the data module gave "
    for change, found in (("(self.tokens[index],)", "list"), ("self.tokens[index].float()", "torch.float32 of shape")):
        Path("wrong_datamodule.py").write_text(CODE.replace("return self.tokens[index]", f"return {change}"))
        sys.modules.pop("wrong_datamodule", None)
        own = ["fit", "--config", "quickstart", *MODEL, "--data", "wrong_datamodule.MyData", "--data.log=seen"]
        assert refusal(own, capsys).startswith(wanted + found)
    sys.modules.pop("wrong_datamodule")


def test_a_plan_counts_by_its_sizes(recipe: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *recipe, "--data.batch_size=7", "--json", "plan.json"]) == 0
    planned = json.loads(Path("plan.json").read_text())
    assert planned["micro_batch"]["sequences"] == 7
    assert planned["micro_batch"]["tokens"] == 16
    Path("other_datamodule.py").write_text(CODE.replace(", batch_size: int = 4", "").replace(", batch_size\n", ", 4\n"))
    other = ["plan", "--config", "quickstart", *MODEL, "--data", "other_datamodule.MyData", "--data.log=seen"]
    assert "data.init_args.batch_size" in refusal(other, capsys)


def test_two_processes_that_lightning_starts_find_it_and_share_its_data(recipe: list[str], tmp_path: Path) -> None:
    flags = [*recipe, "--data.batch_size=4", "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_steps=5"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "lrtrain", "fit", *flags]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (set(Path(f"seen-{rank}").read_text().split()) for rank in range(2))
    assert len(first) >= 20
    assert not first & second
