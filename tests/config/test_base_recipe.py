"""How a run differs from the recipe that it is a variation of."""

import json
from pathlib import Path

import pytest

from lrtrain.config.base_recipe import base_recipe, differences
from lrtrain.config.settings import Settings
from lrtrain.config.train_parser import resolve_config
from lrtrain.runtime.yaml_file import content_of
from lrtrain.tracking.names import flatten

CONFIGS = Path(__file__).parents[2] / "configs"


def told(argv: list[str], params: dict[str, str]) -> dict[str, tuple[str, str, str]]:
    found = differences(json.loads(base_recipe(Settings(argv))), params)
    return {key: (before, now, where) for key, before, now, where in found}


def resolved(tmp_path: Path, files: list[Path], settings: dict[str, object]) -> dict[str, str]:
    """The whole configuration as a run records it."""
    (tmp_path / "config.yaml").write_text(resolve_config(files, settings))
    return flatten(content_of(tmp_path / "config.yaml"))


def test_an_overlay_and_a_flag_are_told_with_where_they_stand(tmp_path: Path) -> None:
    recipe, overlay = CONFIGS / "quickstart.yaml", CONFIGS / "methods/adamw.yaml"
    params = resolved(tmp_path, [recipe, overlay], {"seed_everything": 3, "trainer.accelerator": "cpu"})
    argv = ["--config", str(recipe), "--config", str(overlay), "--seed_everything=3", "--trainer.accelerator", "cpu"]
    found = told(argv, params)
    hidden = "model.optimizers.hidden"
    assert found[f"{hidden}.class_path"] == ("lrtrain.optim.Spectron", "torch.optim.AdamW", str(overlay))
    assert found[f"{hidden}.momentum"] == ("0.95", "–", "its class is another one")
    assert found["seed_everything"] == ("0", "3", "--seed_everything")
    assert found["data.seed"] == ("0", "3", "follows another key")
    assert found["trainer.accelerator"] == ("default", "cpu", "--trainer.accelerator")
    assert "trainer.max_steps" not in found


def test_a_shipped_recipe_as_it_is_differs_in_nothing(tmp_path: Path) -> None:
    recipe = CONFIGS / "quickstart.yaml"
    assert told(["--config", str(recipe)], resolved(tmp_path, [recipe], {})) == {}


def test_a_value_that_is_the_recipes_own_is_no_difference(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: {lr: 1, depth: 2}\ndata: {prepare: {source: [a]}}\n")
    monkeypatch.setenv("LRTRAIN_MODEL__DEPTH", "9")  # weaker than the file
    argv = ["--config", str(file), "--model.lr=1.0", "--data.prepare=null"]
    found = told(argv, {"model.init_args.lr": "1.0", "model.init_args.depth": "2", "data.prepare": "null"})
    assert found == {
        "data.prepare": ("–", "null", "--data.prepare"),
        "data.prepare.source": ('["a"]', "–", "--data.prepare"),
    }
    assert json.loads(base_recipe(Settings(argv)))["name"] == str(file)
    assert json.loads(base_recipe(Settings(argv[2:])))["name"] == ""
