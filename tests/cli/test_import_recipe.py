"""The recipe that `lrtrain import` writes: a run that goes on from the weights."""

import re
from pathlib import Path

import pytest
import torch
import yaml

import llama_folder
import saved_model
from commandline import refusal
from import_command import imported
from lrtrain.checkpoint.single_file import read_whole
from lrtrain.cli.main import main
from lrtrain.config.trained_model import build_decoder, load
from lrtrain.nn import DenseLinear, projections


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain Llama with grouped heads."""
    folder = tmp_path_factory.mktemp("source") / "tiny-llama"
    llama_folder.save(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    return folder


@pytest.fixture(scope="module")
def shards(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared as the recipe of an import says, of other text."""
    from lrtrain.data.preparation import PrepareSpec, prepare

    folder = tmp_path_factory.mktemp("shards")
    imported(source, folder)
    lines = [f'{{"text": "{" ".join(saved_model.WORDS.split()[i % 7 :])} {i}"}}\n' for i in range(200)]
    (folder / "text.jsonl").write_text("".join(lines))
    recipe = yaml.safe_load((folder / "model.yaml").read_text())
    assert recipe["data"]["prepare"].pop("source") == ["stdlib"]
    prepare(PrepareSpec([f"{folder}/text.jsonl"], val_fraction=0.2, **recipe["data"]["prepare"]), f"{folder}/data")
    return folder / "data"


def of_recipe(folder: Path, shards: Path, *flags: str) -> list[str]:
    """Arguments of a run of the recipe beside `model.ckpt`, on these shards."""
    run = ["--config", f"{folder}/model.yaml", f"--data.path={shards}", "--data.prepare=null", f"--runs={folder}/runs"]
    run += ["--trainer.logger=false", "--trainer.precision=32-true", "--trainer.max_steps=2"]
    return [*run, "--trainer.limit_val_batches=2", "--trainer.enable_progress_bar=false", *flags]


@pytest.mark.parametrize(
    ("flags", "optimizer"),
    [((), "AdamW"), (("--energy", "0.88"), "Spectron"), (("--rank", "8", "--kind", "spectral"), "AdamW")],
    ids=["dense", "some low-rank", "spectral"],
)
def test_a_run_of_the_recipe_begins_with_the_weights(
    flags: tuple[str, ...],
    optimizer: str,
    source: Path,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours = imported(source, tmp_path, *flags)
    assert main(["fit", *of_recipe(tmp_path, shards)]) == 0
    said = capsys.readouterr().out
    count = len(ours.state_dict())
    assert f"init_from {tmp_path}/model.ckpt (step 0): {count} tensors as they are, 0 projections rewritten" in said
    assert re.search(rf"^hidden .* {optimizer} ", said, re.MULTILINE)
    dense = sum(isinstance(one, DenseLinear) for one in projections(ours).values())
    others = sum(map(int, re.findall(r"^\*\.\w+\.\*\.weight +(\d+) .* AdamW ", said, re.MULTILINE)))
    assert others == (dense if optimizer == "Spectron" else 0)
    trained, _ = load(tmp_path / "runs/model/0001/checkpoints/step-00000002.ckpt")
    moved = [not torch.equal(a, b) for a, b in zip(ours.parameters(), trained.parameters(), strict=True)]
    assert all(moved)


def test_a_run_of_factors_begins_with_the_dense_weights_too(
    source: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dense").mkdir()
    imported(source, tmp_path / "dense")
    imported(source, tmp_path, "--energy", "0.6")
    assert main(["fit", *of_recipe(tmp_path, shards, f"--init_from={tmp_path}/dense/model.ckpt")]) == 0
    assert ", 14 projections rewritten" in capsys.readouterr().out


def test_what_comes_of_it_keeps_the_license_and_says_where_it_began(source: Path, shards: Path, tmp_path: Path) -> None:
    imported(source, tmp_path)
    assert main(["fit", *of_recipe(tmp_path, shards)]) == 0
    assert main(["fit", *of_recipe(tmp_path, shards, "--ckpt_path=last", "--trainer.max_steps=3")]) == 0
    further = [f"--init_from={tmp_path}/runs/model", "--name=further"]
    assert main(["fit", *of_recipe(tmp_path, shards, *further)]) == 0
    for run, began in (("model", "model.ckpt#step=0"), ("further", "step-00000003.ckpt#step=3")):
        assert main(["export", f"{tmp_path}/runs/{run}", "--out", f"{tmp_path}/{run}"]) == 0
        card = (tmp_path / run / "README.md").read_text()
        assert yaml.safe_load(card.split("---")[1])["license"] == "apache-2.0"
        assert "\n`tiny-llama`, trained further with lrtrain. It continues text.\n" in card
        (row,) = re.findall(r"\| began with \| the weights of `(.*)`, from which steps and tokens count; (.*) \|", card)
        assert f"{began},sha256=" in row[0]
        assert row[1] == "they come from `tiny-llama` (llama), imported"
        assert "\napache-2.0, as tiny-llama states it, with whose weights its training began.\n" in card
    flags = ["--out", f"{tmp_path}/own", "--license", "mit"]
    assert main(["export", f"{tmp_path}/runs/further", *flags]) == 0
    card = (tmp_path / "own/README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"
    assert "\nmit. tiny-llama, with whose weights its training began, states apache-2.0.\n" in card


def test_it_holds_weights_alone_which_validation_takes_and_a_run_does_not_resume(
    source: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imported(source, tmp_path)
    recipe = (tmp_path / "model.yaml").read_text()
    flags = of_recipe(tmp_path, shards, f"--ckpt_path={tmp_path}/model.ckpt")
    (tmp_path / "model.yaml").write_text(recipe.replace(f"init_from: {tmp_path}/model.ckpt\n", ""))
    assert main(["validate", *flags]) == 0
    assert "val/loss" in capsys.readouterr().out
    assert refusal(["fit", *flags], capsys) == (
        f"--ckpt_path {tmp_path}/model.ckpt: lrtrain import wrote it, and it holds weights alone, no run that could go "
        "on: begin with them by --init_from"
    )


@pytest.mark.parametrize("flags", [(), ("--energy", "0.6"), ("--rank", "30", "--kind", "spectral")])
def test_the_recipe_has_the_decoder_of_the_checkpoint(source: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    ours = imported(source, tmp_path, *flags)
    beside = yaml.safe_load((tmp_path / "model.yaml").read_text())
    inside = yaml.safe_load(read_whole(tmp_path / "model.ckpt")["lrtrain"]["config"])
    assert beside.pop("init_from") == f"{tmp_path}/model.ckpt"
    assert beside == inside
    with torch.device("meta"):
        made = build_decoder(beside["model"]["decoder"])
    shapes = {name: p.shape for name, p in ours.named_parameters()}
    assert {name: p.shape for name, p in made.named_parameters()} == shapes
