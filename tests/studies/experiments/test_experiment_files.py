"""Every shipped experiment parses at both scales, and `lrtrain plan` counts what it takes."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from commandline import refusal
from lrtrain.cli.main import main
from lrtrain.config.recipes import find, folder, names
from lrtrain.studies.experiments.experiment_file import load
from lrtrain.studies.experiments.variant_runs import VariantRuns, variant_runs, with_rate, with_size

FOLDER = folder("experiments")
NAMES = names("experiments")
SHIPPED = [
    (name, scale)
    for name in NAMES
    for scale in yaml.safe_load((FOLDER / f"{name}.yaml").read_text()).get("scales", [None])
]
PUBLISHED = {
    "c4_60m": {"dense": 58_176_000, "adamw": 42_873_344, "spectron": 42_873_344},
    "optimizers": {"spectron": 296_930_560, "adamw": 296_930_560},
    "equal_flops": {"spectron": 453_846_528, "dense": 777_856_512},
    "ablation": {"neither": 93_604_608, "spectron": 93_604_608},
    "spectral_norms": {"adamw": 93_604_608, "dense": 134_105_856},
    "sct_ranks": {
        "dense": 1_711_376_384,
        "r256": 692_178_944,
        "r128": 597_797_888,
        "r64": 550_607_360,
        "r32": 527_012_096,
    },
}


@cache
def planned_runs(name: str, scale: str) -> dict[str, VariantRuns]:
    return {runs.variant.name: runs for runs in variant_runs(load(find("experiments", name), scale))}


@pytest.mark.parametrize(("name", "scale"), SHIPPED)
def test_an_experiment_is_planned(name: str, scale: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", name, "--scale", scale, "--plan"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{name} ({scale}): ")
    assert len(out.splitlines()) > 3
    definition = load(find("experiments", name), scale)
    assert definition.checks or definition.kind != "training"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_paper_scale_has_the_published_sizes(name: str) -> None:
    planned = planned_runs(name, "paper")
    assert {variant: planned[variant].cost.parameters for variant in PUBLISHED[name]} == PUBLISHED[name]


def test_what_several_experiments_train_is_one_run() -> None:
    spectron = {planned_runs(*place)[variant].name for place, variant in SAME}
    assert len(spectron) == 1
    assert planned_runs("sct_ranks", "tiny")["r32"].name == planned_runs("sct_per_component_lr", "tiny")["shared"].name
    assert planned_runs("optimizers", "tiny")["adamw"].name == planned_runs("spectral_norms", "tiny")["adamw"].name


SAME = [
    (("optimizers", "tiny"), "spectron"),
    (("optimizer_dynamics", "tiny"), "spectron"),
    (("ablation", "tiny"), "spectron"),
    (("rank_sweep", "tiny"), "quarter"),
]


@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
def test_equal_flops_are_equal(scale: str) -> None:
    planned = planned_runs("equal_flops", scale)
    mine, dense = (planned[name].cost for name in ("spectron", "dense"))
    assert mine.steps > dense.steps
    assert mine.steps % mine.every == 0
    assert mine.steps * mine.flops * mine.tokens == pytest.approx(dense.steps * dense.flops * dense.tokens, rel=0.04)
    assert planned["spectron"].settings["trainer.max_steps"] == mine.steps


@pytest.mark.parametrize(
    ("experiment", "scale", "low_rank", "number"),
    [
        ("sct_table", "quickstart", "bounded", 7),
        ("sct_table", "larger", "bounded", 7),
        ("methods", "quickstart", "spectron", 2),
    ],
)
def test_the_dense_decoders_of_a_table_equal_the_low_rank_one(
    experiment: str, scale: str, low_rank: str, number: int
) -> None:
    planned = planned_runs(experiment, scale)
    like = planned[low_rank].cost
    costs = {name: runs.cost for name, runs in planned.items() if name.startswith("dense")}
    assert len(costs) == number
    for name, cost in costs.items():
        of = "parameters" if name.endswith("parameters") else "flops"
        assert getattr(cost, of) == pytest.approx(getattr(like, of), rel=0.005)


@pytest.mark.parametrize("name", ["ablation", "optimizers", "rank_sweep", "sct_from_scratch"])
def test_the_dense_decoders_at_small_scale_equal_the_factorized_one(name: str) -> None:
    planned = planned_runs(name, "small")
    like = planned["quarter" if name == "rank_sweep" else "spectron"].cost
    assert 2e6 < like.parameters < 1e7
    assert (like.steps, like.tokens) == (1800, 4096)
    for of in ("parameters", "flops"):
        for method in ("dense", "dense_muon"):
            assert getattr(planned[f"{method}_{of}"].cost, of) == pytest.approx(getattr(like, of), rel=0.005)


def test_every_variant_has_as_many_trials_at_small_scale_on_a_text_that_is_not_repeated() -> None:
    scales = [name for name, scale in SHIPPED if scale == "small"]
    assert len(scales) >= 8
    for name in scales:
        definition = load(find("experiments", name), "small")
        if definition.kind == "training":
            assert definition.scale.seeds == 3
            assert {len(variant.factors) for variant in definition.variants if variant.search} == {3}


def test_a_variant_is_left_out_of_a_scale_that_says_null_with_its_checks(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").touch()
    three = {"tiny": None, "large": {"lr": 1}}
    content = changed("variants.three", three)
    content["scales"] = {name: {"configs": [str(tmp_path / "quickstart.yaml")]} for name in ("tiny", "large")}
    for name in ("one", "two"):
        content["variants"][name]["large"] = {"lr": 1}
    content["checks"].append({"order": ["one", "three"]})
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    tiny, large = (load(tmp_path / "toy.yaml", scale) for scale in ("tiny", "large"))
    assert [variant.name for variant in tiny.variants] == ["one", "two"]
    assert [check.variants for check in tiny.checks] == [("one", "two")]
    assert [variant.name for variant in large.variants] == ["one", "two", "three"]
    assert len(large.checks) == 2


def test_the_learning_rate_goes_where_it_is_named() -> None:
    runs = planned_runs("sct_per_component_lr", "tiny")["per_component"]
    settings = runs.configuration(0.01, 3)
    assert settings["model.optimizers.hidden.lr"] == 0.0004
    assert settings["model.optimizers.overrides"]["*.mlp.*"]["init_args"]["lr"] == 0.01
    assert settings["seed_everything"] == 3
    assert with_rate({"a": ["lr", "lr * 2", "lrs", 1]}, 0.5) == {"a": [0.5, 1.0, "lrs", 1]}
    sized = with_size({"a": ["size", "size * 3", "size / 32", "lr"]}, 48.0)
    assert sized == {"a": [48, 144, 1.5, "lr"]}
    assert [type(number) for number in sized["a"][:2]] == [int, int]


def test_the_list_has_a_claim_and_a_time_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment"]) == 0
    heads, *lines, _, total = capsys.readouterr().out.splitlines()
    assert heads.split() == ["experiment", "scale", "time", "claim"]
    assert [line.split()[0] for line in lines] == NAMES
    times = [int(line.split()[2]) for line in lines if load(find("experiments", line.split()[0])).source]
    assert len(times) > 10
    assert min(times) > 0
    whole, summed = int(total.split("about ")[1].split()[0]), sum(times)
    assert whole < min(summed, 150)


FIT = {
    "title": "t",
    "claim": "c",
    "source": "s",
    "scales": {"tiny": {"configs": ["quickstart.yaml"]}},
    "variants": {"one": {"tiny": {"lr": 0.1}}, "two": {"tiny": {"lr": 0.1}}},
    "checks": [{"order": ["one", "two"]}],
}


def changed(path: str, value: Any) -> dict[str, Any]:
    content = yaml.safe_load(yaml.safe_dump(FIT))
    *parents, last = path.split(".")
    place = content
    for key in parents:
        place = place[key]
    place[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("titel", "t", "titel: unknown key; did you mean title?"),
        ("title", None, "title: expected a text, got None"),
        ("kind", "trainin", "kind: expected one of training, rates, isoflop, memory, conversion, got 'trainin'"),
        ("scales", {"": {"configs": ["quickstart.yaml"]}}, "variants.one.tiny: unknown key; "),
        ("scales.tiny.seeds", 0, "scales.tiny.seeds: expected a whole number of at least 1, got 0"),
        ("scales.tiny.configs", [], "scales.tiny.configs: expected a recipe, got ()"),
        ("scales.tiny.overlays", ["absent.yaml"], "absent.yaml does not exist: correct the path"),
        ("variants", {}, "variants: expected the variants to train, got {}"),
        ("variants.one.tiny.lr", 0, "variants.one.tiny.lr: expected a number above 0, got 0"),
        ("variants.one.tiny.equal_flops", "too", "equal_flops: no variant 'too' of own steps: did you mean two?"),
        ("variants.one", {"tinny": {"lr": 1}}, "variants.one.tinny: unknown key; did you mean tiny?"),
        ("variants.one.tiny", {}, "variants.one.tiny.lr: expected a number above 0, got nothing"),
        ("variants.one.label", "two", "variants: two are labeled 'two'"),
        ("seeds", "many", "seeds: expected a whole number of at least 1, got 'many'"),
        ("variants.one", 3, "variants.one: expected keys with their values, got 3"),
        ("figure", [{"metric": "val/loss", "over": "stepz"}], "figure[0].over: expected one of steps"),
        ("figure", [{"metric": "x", "statistic": "max"}], "figure[0].statistic: expected last, for a curve, got 'max'"),
        ("scales.tiny.factors", [0.5], "factors: expected factors that differ, 1 among them, got [0.5]"),
        ("variants.one.without", ["width"], "variants.one.without: expected nothing beside kind: rates"),
        ("checks", [{"order": ["one"]}], "checks[0].order: expected two variants or more"),
        ("checks", [{"order": ["one", "tow"]}], "checks[0].order: no variant 'tow': did you mean two?"),
        ("checks", [{"ratio": ["one", "two"]}], "checks[0].between: expected a lower and an upper end"),
        ("checks", [{"metric": "x"}], "checks[0]: give one of order, reaches, ratio, difference, bound"),
        ("checks", [{"order": ["one", "two"], "between": [1, 2]}], "checks[0].between: expected nothing beside order"),
    ],
)
def test_a_mistake_in_a_file_is_refused_with_its_key(
    path: str, value: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "quickstart.yaml").touch()
    folder = tmp_path / "experiments"
    folder.mkdir()
    content = changed(path, value)
    content["scales"] = {**content["scales"]}
    for scale in content["scales"].values():
        scale["configs"] = [os.path.join("..", name) for name in scale["configs"]]
    (folder / "toy.yaml").write_text(yaml.safe_dump(content))
    line = refusal(["experiment", str(folder / "toy.yaml")], capsys)
    assert line.startswith(f"{folder}/toy.yaml: ")
    assert said in line


def test_a_mistake_on_the_command_line_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(["experiment", "optimizer"], capsys)
    assert said == "optimizer is neither a file nor a shipped experiment: did you mean optimizers?"
    line = refusal(["experiment", "ablation", "--scale", "huge"], capsys)
    assert line == f"{FOLDER}/ablation.yaml: no scale huge: there are tiny, small, paper"
    for flag in ("--seeds", "--jobs", "--threads"):
        line = refusal(["experiment", "ablation", flag, "0"], capsys)
        assert line.startswith(f"argument {flag}: expected a whole number, at least 1, got 0")
    (tmp_path / "broken.yaml").write_text("a: [")
    assert "is not valid YAML" in refusal(["experiment", str(tmp_path / "broken.yaml")], capsys)
