"""The isoFLOP grid: shapes by a size index, budgets met within a step, and the plans that are shipped."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from commandline import refusal
from lrtrain.cli.main import main
from lrtrain.nn import Decoder, DenseLinear, LowRankLinear
from lrtrain.studies.scaling.grid import Grid, Shape, Size, points_of, shape_of, size_of
from lrtrain.studies.scaling.planned_grid import Plan

CONFIGS = Path(__file__).parents[3] / "configs"


def decoder(shape: Shape, dense: bool = False, vocabulary: int = 500) -> Decoder:
    def linear(in_features: int, out_features: int) -> torch.nn.Module:
        return DenseLinear(in_features, out_features) if dense else LowRankLinear(in_features, out_features, None, 0.25)

    with torch.device("meta"):
        return Decoder(vocabulary, shape.width, shape.depth, shape.heads, shape.ffn_width, linear, linear)


@settings(max_examples=15)
@given(index=st.integers(1, 6), half_head=st.integers(1, 64), dense=st.booleans())
def test_shapes_are_valid_and_grow_with_the_index(index: int, half_head: int, dense: bool) -> None:
    small, large = (shape_of(n, 2 * half_head) for n in (index, index + 1))
    assert small.ffn_width % (8 * half_head) == 0
    assert 8 * small.width <= 3 * small.ffn_width < 8 * small.width + 3 * 8 * half_head
    sizes = [size_of(decoder(shape, dense), 64) for shape in (small, large)]
    assert sizes[0].parameters < sizes[1].parameters
    assert sizes[0].non_embedding < sizes[1].non_embedding
    assert sizes[0].flops < sizes[1].flops
    assert small.width < large.width
    assert small.ffn_width <= large.ffn_width


@pytest.mark.parametrize(("size", "index"), [("S", 12), ("M", 20), ("L", 24)])
def test_the_published_sizes_have_an_index(size: str, index: int) -> None:
    recipe = OmegaConf.load(CONFIGS / f"spectron_{size}.yaml").model.decoder.init_args
    shape = shape_of(index)
    assert {key.rpartition(".")[2]: value for key, value in shape.settings.items()} == {
        key: recipe[key] for key in ("width", "depth", "heads", "ffn_width")
    }


def test_a_size_counts_a_tied_embedding_once_and_training_as_three_forward_passes() -> None:
    def linear(in_features: int, out_features: int) -> torch.nn.Module:
        return DenseLinear(in_features, out_features)

    for tied in (False, True):
        made = Decoder(500, 32, 2, 2, 64, linear, linear, tie_embeddings=tied)
        size = size_of(made, 64)
        assert size.parameters - size.non_embedding == 500 * 32 * (1 if tied else 2)
        assert size.flops == 3 * made.flops_per_token(64)


@pytest.fixture(scope="module")
def sizes() -> dict[Shape, Size]:
    return {shape: size_of(decoder(shape), 64) for shape in map(shape_of, (1, 2, 3, 4))}


@given(step=st.integers(1, 4000), budget=st.floats(1e11, 1e13))
def test_every_point_meets_its_budget_within_one_step(sizes: dict[Shape, Size], step: int, budget: float) -> None:
    grid = Grid((Path("recipe.yaml"),), (budget,), (1, 2, 3, 4), tokens_per_parameter=(1e-9, 1e9))
    for point in points_of(grid, sizes, step):
        of_a_token = sizes[point.shape].flops
        assert abs(point.flops - budget) <= step * of_a_token / 2
        assert point.flops == point.tokens * of_a_token
        assert point.tokens == point.steps * step


def test_the_papers_grid_has_its_number_of_runs_between_its_budgets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scaling", "plan", str(CONFIGS / "scaling_laws/paper.yaml"), "--out", str(tmp_path / "paper")]) == 0
    out = capsys.readouterr().out
    plan = Plan.load(tmp_path / "paper")
    budgets = sorted({point.budget for point in plan.points})
    assert len(plan.points) == 39
    assert (budgets[0], budgets[-1]) == (2.2e18, 3.57e19)
    assert "39 points, 5.3e+20 FLOPs in all" in out
    assert "524,288 tokens a step" in out
    sizes = {point.shape.size_index: f"{point.parameters / 1e6:.2f}" for point in plan.points}
    assert (sizes[12], sizes[20], sizes[24]) == ("93.60", "296.93", "453.85")
    row = next(line for line in out.splitlines() if line.split()[:1] == ["2.2e18-n12"])
    assert row.split()[-5:] == ["44,452,608", "3,434,610,688", "6,551", "2.2e+18", "36.7"]


def test_overlays_flags_and_a_second_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dense = [part for name in ("quickstart", "methods/dense") for part in ("--config", str(CONFIGS / f"{name}.yaml"))]
    grid = ["scaling", "plan", str(CONFIGS / "scaling_laws/tiny.yaml")]
    assert main([*grid, *dense, "--out", "dense", "--data.batch_size", "8", "--trainer.devices=2"]) == 0
    plan = Plan.load(Path("dense"))
    assert plan.configs == (dense[1], dense[3])
    schedule = {"model.schedule": "lrtrain.optim.WarmupStableDecay"}
    assert plan.overrides == {**schedule, "data.block_size": 64, "data.batch_size": "8", "trainer.devices": 2}
    assert plan.tokens_per_step == 64 * 8 * 2
    assert plan.lr is None
    first = plan.points[0]
    assert first.parameters == sum(p.numel() for p in decoder(first.shape, dense=True, vocabulary=4096).parameters())
    capsys.readouterr()
    assert main([*grid, *dense, "--out", "dense", "--data.batch_size", "8", "--trainer.devices=2"]) == 0
    assert refusal([*grid, "--out", "dense"], capsys).startswith("dense/plan.yaml holds another plan")
    assert refusal([*grid, "--out", "/dev/null/plan"], capsys).startswith("cannot write /dev/null/plan/plan.yaml")


GRID: dict[str, Any] = {
    "configs": [str(CONFIGS / "quickstart.yaml")],
    "budgets": ["1e12"],
    "size_indices": [2, 3, 4],
    "tokens_per_parameter": [0.01, 100],
    "head_width": 16,
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budget": [1e12]}, "grid.yaml: budget: unknown key; did you mean budgets?"),
        ({"budgets": None}, "grid.yaml: budgets: expected a list, each item a number above 0, got None"),
        (
            {"budgets": [1e12, -1]},
            "grid.yaml: budgets: expected a list, each item a number above 0, got [1000000000000.0, -1]",
        ),
        ({"budgets": []}, "grid.yaml: budgets: expected a list, at least one item and none twice, got []"),
        (
            {"size_indices": [2, 2, 3]},
            "grid.yaml: size_indices: expected a list, at least one item and none twice, got [2, 2, 3]",
        ),
        (
            {"size_indices": [0, 1, 2]},
            "grid.yaml: size_indices: expected a list, each item a whole number of at least 1, got",
        ),
        ({"size_indices": ["a"]}, "grid.yaml: size_indices: expected a list"),
        ({"configs": []}, "grid.yaml: configs: expected a list, at least one item"),
        ({"tokens_per_parameter": [5, 1]}, "grid.yaml: tokens_per_parameter: expected a lower and a higher bound"),
        ({"head_width": 15}, "grid.yaml: head_width is 15: rotary positions need an even one"),
        ({"head_width": "wide"}, "grid.yaml: head_width: expected a whole number of at least 1, got 'wide'"),
        ({"lr": "guess"}, "grid.yaml: lr: expected one of fixed, searched, got 'guess'"),
        ({"seeds": [-1]}, "grid.yaml: seeds: expected a list"),
        ({"overrides": [1]}, "grid.yaml: overrides: expected keys with their values, got [1]"),
        (
            {"overrides": {"trainer": {"max_steps": 3}}},
            "grid.yaml: overrides.trainer: expected a value; keys are dotted",
        ),
        ({"overrides": {"trainer.max_steps": 3}}, "grid.yaml: overrides.trainer.max_steps: the plan gives each point"),
        (
            {"overrides": {"model.decoder.init_args.width": 3}},
            "overrides.model.decoder.init_args.width: the plan gives",
        ),
    ],
)
def test_a_grid_file_with_a_mistake_is_refused_in_one_line(
    changes: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump(GRID | changes))
    assert said in refusal(["scaling", "plan", str(file), "--out", str(tmp_path / "out")], capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "flags", "said"),
    [
        (
            {"budgets": [1e7]},
            [],
            "budget 1e7: 0 of the sizes give 10 steps and 0.01 to 100 tokens per parameter (all of them: 0 to 0",
        ),
        (
            {"size_indices": [2, 3]},
            [],
            "budget 1e12: 2 of the sizes give 10 steps and 0.01 to 100 tokens per parameter",
        ),
        ({"budgets": [1e12, 1.00001e12]}, [], "the point 1e12-n2 is there twice"),
        ({}, ["--data.blok_size", "64"], "--data.blok_size: unknown key; did you mean block_size?"),
        ({}, ["--data.block_size"], "--data.block_size: expected a value"),
        ({}, ["--trainer.max_steps", "5"], "--trainer.max_steps: the plan gives each point its own"),
        ({}, ["--trainer.devices=-1"], "trainer.devices is -1: a plan needs the number of devices"),
        ({}, ["--model.decoder.kv_heads=4"], "size index 2 with model.decoder of the recipe: heads must be a multiple"),
        ({"configs": ["nowhere.yaml"]}, [], "nowhere.yaml does not exist"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_one_line(
    changes: dict[str, Any],
    flags: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump(GRID | changes))
    assert said in refusal(["scaling", "plan", str(file), "--out", str(tmp_path / "out"), *flags], capsys)


def test_files_that_are_no_grid_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert "does not exist" in refusal(["scaling", "plan", str(tmp_path / "none.yaml"), *out], capsys)
    file = tmp_path / "grid.yaml"
    for text, said in (
        ("- 1", "grid.yaml: expected keys with their values, got [1]"),
        ("a: [", "is not valid YAML"),
        ("lr: fixed", "configs: expected a list, each item the path of a YAML file, got nothing"),
    ):
        file.write_text(text)
        assert said in refusal(["scaling", "plan", str(file), *out], capsys)
    assert "required: --out" in refusal(["scaling", "plan", str(file)], capsys)
