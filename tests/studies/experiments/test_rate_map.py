"""The kind `rates`: curves over the learning rate, where they are lowest, and how far that moves."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import pretend_fit
import toy
from commandline import RECIPE, refusal
from experiment_file import write
from lrtrain.cli.main import main
from lrtrain.config.recipes import find
from lrtrain.studies.experiments.rate_optimum import lost_at, movement, optimum
from lrtrain.studies.jobs import launch, rate_grid

AXES = [
    {
        "name": "width",
        "sizes": [56, 112],
        "at": 56,
        "settings": {"model.decoder.width": "size", "model.decoder.heads": "size / 28"},
    },
    {"name": "depth", "sizes": [2, 4], "at": 2, "settings": {"model.decoder.depth": "size"}},
]
VARIANTS = {
    "one": {"label": "one", "lr": 0.04},
    "two": {"overlays": [str(RECIPE.parent / "methods/muon.yaml")], "lr": 0.02, "without": ["depth"]},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts the stand-in in the place of `lrtrain fit`; the names of the runs that it was started for."""
    monkeypatch.setattr(launch, "COMMAND", (sys.executable, "-I", str(pretend_fit.__file__)))
    for name, value in {"TOKENS": "128", "MOVES": "1", "LOG": str(tmp_path / "started")}.items():
        monkeypatch.setenv(f"PRETEND_{name}", value)
    monkeypatch.delenv("PRETEND_FIT", raising=False)
    return tmp_path / "started"


def mapped(folder: Path, shards: Path, **changes: Any) -> list[str]:
    """The command line of an experiment of the kind; what is None in `changes` is left out."""
    content = {"kind": "rates", "factors": [0.5, 1, 2], "seeds": 1, "axes": AXES, "variants": VARIANTS, **changes}
    argv = write(folder, shards)
    toys = yaml.safe_load(Path(argv[1]).read_text())["scales"]["tiny"]
    toys["settings"] = {key: value for key, value in toys["settings"].items() if key != "model.decoder.heads"}
    mine = {**toys, **{key: value for key, value in content.items() if value is not None}}
    Path(argv[1]).write_text(yaml.safe_dump(mine, sort_keys=False))
    return argv


def test_the_best_rate_is_the_vertex_of_a_parabola_in_the_logarithm() -> None:
    def law(lr: float) -> float:
        return 3 + math.log(lr / 0.03) ** 2

    best = optimum({lr: law(lr) for lr in (0.01, 0.02, 0.04, 0.08)})
    assert best.lr == pytest.approx(0.03)
    assert best.loss == pytest.approx(law(0.04))
    assert (best.end, best.good) == ("", (0.02, 0.04))
    falling = optimum({lr: law(lr) for lr in (0.005, 0.01, 0.02)})
    assert (falling.lr, falling.end) == (0.02, "highest")
    assert optimum({0.04: 3.0, 0.08: 3.05, 0.16: 4.0}).end == "lowest"
    diverged = optimum({0.01: 4.0, 0.02: 3.0, 0.04: math.inf})
    assert (diverged.lr, diverged.end) == (0.02, "")
    assert math.isnan(optimum({0.01: math.inf}).lr)


def test_how_far_the_best_rate_moves_and_what_it_costs_not_to_follow() -> None:
    def curve(best: float) -> dict[float, float]:
        return {lr: 3 + math.log2(lr / best) ** 2 for lr in (0.01, 0.02, 0.04, 0.08)}

    moved = movement([curve(0.02), curve(0.04)], curve(0.02))
    assert moved.factor == pytest.approx(2)
    assert (moved.least, moved.lost) == (False, pytest.approx(1))
    assert movement([curve(0.02), curve(0.08)], curve(0.02)).least
    assert lost_at(curve(0.02), math.sqrt(0.02 * 0.04)) == pytest.approx(0.5)
    assert math.isnan(lost_at(curve(0.02), 0.1))
    assert math.isnan(movement([curve(0.02), {0.01: math.inf}], curve(0.02)).factor)


def test_every_size_is_trained_at_every_rate_and_the_movement_is_told(
    log: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*mapped(tmp_path, shards), "--jobs", "2"]
    assert main([*argv, "--plan"]) == 0
    assert "15 runs, and more where" in capsys.readouterr().out
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "moves, least first: two 1.00 over width; one 1.00 over width, 2.00 over depth\n" in out
    started = log.read_text().splitlines()
    # The best of `one` at depth 4 and of `two` lie at an end of their grids, where one more rate is tried.
    assert len(started) == len(set(started)) == 5 * 3 + 3
    folder = tmp_path / "runs/experiments/widths"
    found = json.loads((folder / "results.json").read_text())["variants"]
    assert [[size["label"] for size in one["sizes"]] for one in found] == [
        ["one", "one, width 112", "one, depth 4"],
        ["two", "two, width 112"],
    ]
    assert found[0]["sizes"][2]["best"]["lr"] == pytest.approx(0.02)
    assert found[0]["moves"]["depth"]["lost"] == pytest.approx(math.log(2) ** 2 / 10)
    assert set(found[0]["sizes"][2]["rates"]) == {"0.01", "0.02", "0.04", "0.08"}
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert main(argv) == 0
    assert len(log.read_text().splitlines()) == len(started)
    assert all(name.endswith("-s0") for name in started)
    assert main(mapped(tmp_path, shards, first_seed=1000)) == 0
    again = log.read_text().splitlines()[len(started) :]
    assert [name.replace("-s1000", "-s0") for name in again] == started


def test_without_axes_the_methods_are_compared_over_the_rate(
    log: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRETEND_FIT", "diverge:lr0.08")
    tokens = {"metric": "throughput/tokens_seen", "over": "lr", "statistic": "max"}
    figure = [{"metric": "val/loss", "over": "lr"}, tokens]
    settings = {"model.decoder.width": 56, "model.decoder.heads": 2}
    variants = {name: {**one, "settings": settings} for name, one in VARIANTS.items()}
    variants["two"] = {**variants["two"], "without": [], "search": False}
    assert main(mapped(tmp_path, shards, axes=None, figure=figure, variants=variants)) == 0
    out = capsys.readouterr().out
    assert "verdict: lowest loss: one 13.000 at 0.04, two 13.048 at 0.02" in out
    assert "one: diverged at lr 0.08" in out
    assert "max throughput/tokens_seen" in out
    assert (tmp_path / "runs/experiments/widths/figure.png").exists()
    assert len(log.read_text().splitlines()) == 3 + 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"factors": [0.5, 2]}, "factors: expected factors that differ, 1 among them, got [0.5, 2.0]"),
        ({"factors": None}, "factors: kind: rates needs factors of the variants' lr, such as [0.5, 1, 2]"),
        ({"checks": [{"order": ["one", "two"]}]}, "checks: expected nothing beside kind: rates"),
        ({"figure": [{"metric": "val/loss"}]}, "figure[0].over: expected lr, got 'steps'"),
        ({"kind": "training", "axes": None}, "figure[0].over: expected another than lr"),
        ({"axes": [{**AXES[0], "at": 64}]}, "axes: width: give sizes that differ, and one of them as at"),
        ({"axes": [{**AXES[0], "settings": None}]}, "axes[0].settings: expected keys with their values, got None"),
        ({"axes": [{**AXES[0], "sizes": [0, 1]}]}, "axes[0].sizes: expected a list, each item a number above 0"),
        ({"variants": {**VARIANTS, "two": {"lr": 1, "without": ["dept"]}}}, "no axis 'dept': did you mean depth?"),
        (
            {"variants": {**VARIANTS, "two": {"lr": 1, "equal_flops": "one"}}},
            "equal_flops: expected nothing",
        ),
        ({"axes": [{**AXES[1], "settings": {"model.decoder.dept": "size"}}]}, "model.decoder.dept"),
    ],
)
def test_a_mistake_is_refused_before_any_run(
    changes: dict[str, Any], said: str, log: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if changes.get("kind") == "training":
        changes = {**changes, "figure": [{"metric": "val/loss", "over": "lr"}], "variants": {"one": {"lr": 0.1}}}
    assert said in refusal(mapped(tmp_path, shards, **changes), capsys)
    assert not log.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transfer", "learning_rate_map", "embedding_lr"])
def test_a_shipped_map_runs_end_to_end_at_toy_size(
    name: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rate_grid, "FURTHER", 0)
    file = find("experiments", name)
    content = yaml.safe_load(file.read_text())
    toys = yaml.safe_load(Path(write(tmp_path, shards)[1]).read_text())["scales"]["tiny"]["settings"]
    (scale, *_) = content["scales"].values()
    kept = {key: value for key, value in toys.items() if not key.startswith("model.decoder")}
    scale["settings"] = {**scale.get("settings", {}), **kept, "model.decoder.vocab_size": toy.VOCABULARY}
    if "telemetry" in scale:
        scale["telemetry"] = 2
    content |= {"scales": {"tiny": scale}, "factors": [1, 2]}
    for variant in content["variants"].values():
        variant.pop("factors", None)
    for axis in scale.get("axes", []):
        axis["sizes"], axis["at"] = axis["sizes"][:2], axis["sizes"][0]
    copy = file.parent / f"{name}.yaml"
    text = yaml.safe_dump(content, sort_keys=False).replace("../", f"{copy.parents[1]}/")
    (tmp_path / f"{name}.yaml").write_text(text)
    assert main(["experiment", str(tmp_path / f"{name}.yaml"), "--runs", str(tmp_path / "runs"), "--jobs", "2"]) == 0
    assert "verdict: " in capsys.readouterr().out
    found = json.loads((tmp_path / f"runs/experiments/{name}-tiny/results.json").read_text())
    for variant in found["variants"]:
        for size in variant["sizes"]:
            assert math.isfinite(size["best"]["loss"])
    assert (tmp_path / f"runs/experiments/{name}-tiny/figure.png").exists()
