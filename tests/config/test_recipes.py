"""Every shipped YAML parses, has the published size, and trains."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import toy
from lrtrain.cli.main import main
from lrtrain.config.trained_model import build_decoder
from ranks import on_ranks

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))
SCALES = sorted(CONFIGS.glob("parallel/*.yaml"))
STUDIES = [
    path for kind in ("experiments", "scaling_laws", "sweeps", "tasks") for path in CONFIGS.glob(f"{kind}/*.yaml")
]
OVERLAYS = [path for path in sorted(CONFIGS.glob("*/*.yaml")) if path not in [*SCALES, *STUDIES]]
MILLIONS = {
    "spectron_S": "93.60",
    "dense_S": "134.11",
    "sct_S": "93.62",
    "spectron_M": "296.93",
    "dense_M": "488.30",
    "spectron_L": "453.85",
    "dense_L": "777.86",
    "sct_smollm2_1.7B": "527.01",
    "c4_60m": "42.87",
}
TOY = {"c4_60m": ["--model.decoder.attention.rank=16", "--model.decoder.mlp.rank=16"]}
"""Flags of recipes whose ranks are more than the toy's width."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


def run_two_steps(files: list[Path], shards: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> str:
    arguments = [part for file in files for part in ("--config", str(file))]
    assert main(["fit", *arguments, *toy.flags(shards, runs), *TOY.get(files[0].stem, [])]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains(recipe: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run_two_steps([recipe], shards, tmp_path, capsys)
    assert "validation      loss" in out
    assert list(tmp_path.glob("*/0001/checkpoints/step-00000002.ckpt"))


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_an_overlay_trains_on_quickstart(
    overlay: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run_two_steps([CONFIGS / "quickstart.yaml", overlay], shards, tmp_path, capsys)
    assert "validation      loss" in out


@pytest.mark.parametrize("scale", SCALES, ids=lambda path: path.stem)
def test_a_scale_trains_on_the_processes_that_it_names(scale: Path, shards: Path, tmp_path: Path) -> None:
    processes = OmegaConf.load(scale).trainer.devices
    files = ["--config", str(CONFIGS / "quickstart.yaml"), "--config", str(scale)]
    fit = ["fit", *files, *toy.flags(shards, tmp_path), "--trainer.logger=false"]
    assert on_ranks(processes, main, fit) == [0] * processes
    assert list(tmp_path.glob("quickstart/0001/checkpoints/step-00000002.ckpt"))


@pytest.mark.parametrize("name", MILLIONS)
def test_a_recipe_has_the_published_number_of_parameters(name: str) -> None:
    config = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"), resolve=True)
    with torch.device("meta"):
        decoder = build_decoder(config["model"]["decoder"])
    millions = sum(parameter.numel() for parameter in decoder.parameters()) / 1e6
    assert f"{millions:.2f}" == MILLIONS[name]
