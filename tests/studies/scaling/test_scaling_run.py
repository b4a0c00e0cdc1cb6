"""`lrtrain scaling run`: every point trained for its tokens, once, and told."""

import csv
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import pretend_fit
import toy
from commandline import RECIPE, refusal
from lrtrain.cli.main import main
from lrtrain.studies.jobs import launch
from lrtrain.studies.scaling.planned_grid import Plan

STAND_IN = Path(pretend_fit.__file__)
STEP = 128


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts the stand-in in the place of `lrtrain fit`; the names of the runs that it was started for."""
    monkeypatch.setattr(launch, "COMMAND", (sys.executable, "-I", str(STAND_IN)))
    monkeypatch.setenv("PRETEND_TOKENS", str(STEP))
    monkeypatch.setenv("PRETEND_LOG", str(tmp_path / "started"))
    monkeypatch.delenv("PRETEND_FIT", raising=False)
    return tmp_path / "started"


def plan(folder: Path, shards: Path, **changes: Any) -> Path:
    """A plan of three budgets and four sizes, steps of 4 sequences of 32 tokens."""
    grid = {
        "configs": [str(RECIPE)],
        "budgets": [1e9, 3e9, 1e10],
        "size_indices": [2, 3, 4, 5],
        "head_width": 8,
        "tokens_per_parameter": [1e-6, 1e6],
        "overrides": {
            "model.decoder.vocab_size": toy.VOCABULARY,
            "data.path": str(shards),
            "data.block_size": toy.BLOCK,
            "data.batch_size": 4,
            "data.prepare": None,
            "trainer.accelerator": "cpu",
            "trainer.precision": "32-true",
            "trainer.limit_val_batches": 2,
        },
    }
    file = folder / "grid.yaml"
    file.write_text(yaml.safe_dump({**grid, **changes}))
    assert main(["scaling", "plan", str(file), "--out", str(folder / "toy")]) == 0
    return folder / "toy"


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "points.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_point_is_trained_once_and_the_law_behind_is_found(
    log: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = plan(tmp_path, shards, seeds=[0, 1])
    run = ["scaling", "run", str(folder), "--runs", str(tmp_path / "runs"), "--jobs", "2"]
    assert main(run) == 0
    planned = Plan.load(folder)
    assert len(log.read_text().splitlines()) == len(set(log.read_text().splitlines())) == 24
    assert [row["name"] for row in rows(folder)] == [point.name for point in planned.points for _ in range(2)]
    assert [int(row["tokens"]) for row in rows(folder)[::2]] == [point.tokens for point in planned.points]
    assert main(run) == 0
    assert len(log.read_text().splitlines()) == 24
    capsys.readouterr()
    assert main(["scaling", "fit", str(folder), "--resamples", "100", "--parameters", "non-embedding"]) == 0
    assert "verdict: not comparable, budgets" in capsys.readouterr().out


def test_a_searched_learning_rate_is_the_best_of_each_point_and_the_other_seeds_take_it(
    log: Path, shards: Path, tmp_path: Path
) -> None:
    folder = plan(tmp_path, shards, lr="searched", seeds=[0, 1], budgets=[3e9])
    assert Plan.load(folder).lr == 0.035
    assert main(["scaling", "run", str(folder), "--runs", str(tmp_path / "runs")]) == 0
    assert {float(row["lr"]) for row in rows(folder)} == {0.035}  # the law's is 0.04
    names = [name for name in log.read_text().splitlines() if name.startswith("toy-3e9-n2-")]
    assert sorted(names) == [f"toy-3e9-n2-s0-lr{lr}" for lr in ("0.0175", "0.035", "0.07")] + ["toy-3e9-n2-s1-lr0.035"]


def test_a_rate_that_the_optimizer_refuses_ends_its_direction_alone(
    log: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETEND_FIT", "mistake:lr0.0175")
    folder = plan(tmp_path, shards, lr="searched", budgets=[3e9])
    assert main(["scaling", "run", str(folder), "--runs", str(tmp_path / "runs")]) == 0
    assert {float(row["lr"]) for row in rows(folder)} == {0.035}


def test_a_point_that_diverges_is_left_out_and_said(
    log: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRETEND_FIT", "diverge:1e9-n4")
    folder = plan(tmp_path, shards)
    assert main(["scaling", "run", str(folder), "--runs", str(tmp_path / "runs")]) == 0
    assert "1e9-n4  seed 0  no loss: stopped at step 7: non-finite gradients" in capsys.readouterr().out
    assert len(rows(folder)) == 11
    assert all(math.isfinite(float(row["loss"])) for row in rows(folder))


@pytest.mark.parametrize(
    ("failure", "said", "kept"),
    [
        ("crash:1e9-n4", "1 runs failed (1e9-n4 seed 0): mend what the lines above say and run again", 11),
        ("mistake:1e9", "--model.decoder.vocab_size: expected int, got many", None),
        ("tokens:3e9-n2", "tokens where ", None),
    ],
)
def test_a_run_that_fails_is_told_in_one_line(
    failure: str,
    said: str,
    kept: int | None,
    log: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = plan(tmp_path, shards)
    monkeypatch.setenv("PRETEND_FIT", failure)
    run = ["scaling", "run", str(folder), "--runs", str(tmp_path / "runs")]
    assert said in refusal(run, capsys)
    assert (len(rows(folder)) if kept else (folder / "points.csv").exists()) == (kept or False)
    if kept:
        monkeypatch.delenv("PRETEND_FIT")
        assert main(run) == 0
        assert len(rows(folder)) == 12


def test_some_points_alone_are_trained_on_one_of_many_machines(
    log: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = plan(tmp_path, shards)
    run = ["scaling", "run", str(folder), "--runs", str(tmp_path / "runs")]
    assert main([*run, "--only", "1e9-n2", "3e9-n5"]) == 0
    assert log.read_text().splitlines() == ["toy-1e9-n2-s0", "toy-3e9-n5-s0"]
    assert not (folder / "points.csv").exists()
    assert refusal([*run, "--only", "1e9-n9"], capsys).startswith(
        "--only 1e9-n9: the plan has no such point; there are"
    )
    assert refusal([*run, "--jobs", "0"], capsys).startswith(
        "argument --jobs: expected a whole number, at least 1, got 0"
    )
    missing = refusal(["scaling", "run", str(tmp_path / "none")], capsys)
    assert missing.startswith(f"{tmp_path}/none/plan.yaml cannot be read")
    for text, said in (
        ("a: [", "is not valid YAML"),
        ("a: 1", "plan.yaml: a: unknown key"),
        ("points: 3", "plan.yaml: points: expected a list, each item keys with their values, got 3"),
        ("{a: 1, points: []}", "plan.yaml: a: unknown key"),
        ("1", "plan.yaml: expected keys with their values, got 1"),
    ):
        (folder / "plan.yaml").write_text(text)
        assert said in refusal(run, capsys)


def test_a_real_run_sees_exactly_the_tokens_that_were_planned(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = plan(tmp_path, shards)
    point = next(point for point in Plan.load(folder).points if point.name == "1e9-n4")
    assert point.steps % 5 != 0  # not a multiple of the recipe's log interval
    assert main(["scaling", "run", str(folder), "--runs", str(tmp_path / "runs"), "--only", "1e9-n4"]) == 0
    assert "1e9-n4  seed 0  loss " in capsys.readouterr().out
    record = (tmp_path / "runs/toy-1e9-n4-s0/0001/metrics.jsonl").read_text()
    assert f'"throughput/tokens_seen": {float(point.tokens)}' in record
