"""`lrtrain sweep`: refuses before any trial, trains real ones as children of one MLflow run, and writes the best."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import toy
from commandline import refusal
from lrtrain.cli.main import main
from lrtrain.studies.sweep.space import read_space
from lrtrain.studies.sweep.sweeping import check

CONFIGS = Path(__file__).parents[2] / "configs"
SPACES = sorted(CONFIGS.glob("sweeps/*.yaml"))
RATE = "model.optimizers.hidden.lr"
Refuse = Callable[..., str]


@pytest.fixture
def refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Refuses the sweep of a space over quickstart; nothing is left behind."""
    monkeypatch.chdir(tmp_path)

    def run(text: str, *flags: str) -> str:
        Path("s.yaml").write_text(text if "configs" in text else f"{text}\nconfigs: [{CONFIGS}/quickstart.yaml]\n")
        line = refusal(["sweep", "--space", "s.yaml", *flags], capsys)
        assert not Path("runs").exists()
        return line

    return run


GRID = f"parameters: {{{RATE}: {{choices: [0.01, 0.02]}}}}"

SPACE_MISTAKES = {
    "parameters: {}": "s.yaml: parameters: the space is empty",
    "sampler: grid": "s.yaml: parameters: the space is empty",
    "paramters: {}": "s.yaml: paramters: unknown key; did you mean parameters?",
    "- configs": "s.yaml: expected keys with their values, got ['configs']",
    "parameters: {": "s.yaml is not valid YAML: line",
    f"{GRID}\nsampler: tpee": "s.yaml: sampler: expected one of grid, random, tpe, got 'tpee'",
    f"{GRID}\nmode: best": "s.yaml: mode: expected one of min, max, got 'best'",
    f"{GRID}\nsampler: random": "s.yaml: trials: is missing; the sampler random needs",
    f"{GRID}\ntrials: 0": "s.yaml: trials: expected a whole number of at least 1, got 0",
    f"{GRID}\nfirst: [{{{RATE}: 0.01}}]": "s.yaml: first: a grid has its own order",
    f"{GRID}\nsampler: tpe\ntrials: 1\nfirst: [{{}}, {{}}]": "s.yaml: first: has 2 points, and trials is 1",
    f"{GRID}\nsampler: tpe\ntrials: 2\nfirst: [{{{RATE}: 0.03}}]": f"s.yaml: first.0.{RATE}: 0.03 is none of",
    f"{GRID}\nsampler: tpe\ntrials: 2\nfirst: [{{{RATE}s: 0.01}}]": f"s.yaml: first.0.{RATE}s: is not varied",
    f"{GRID}\nseeds: [1, 1]": "s.yaml: seeds: [1, 1] has one twice",
    f"{GRID}\nseeds: [a]": "s.yaml: seeds: expected a list, each item a whole number of at least 0, got ['a']",
    f"{GRID}\nseeds: [1]\noverrides: {{seed_everything: 3}}": "s.yaml: overrides.seed_everything: seeds in s.yaml",
    f"{GRID}\nconfigs: quickstart.yaml": "s.yaml: configs: expected a list, each item the path of a YAML file",
    f"{GRID}\nconfigs: []": "s.yaml: configs: names no recipe",
    f"{GRID}\nconfigs: [none.yaml]": "s.yaml: configs: the file none.yaml does not exist: correct the path",
    f"{GRID}\noverrides: [1]": "s.yaml: overrides: expected keys with their values",
    f"{GRID}\noverrides: {{{RATE}: 0.1}}": f"s.yaml: overrides.{RATE}: is varied under parameters",
    f"{GRID}\noverrides: {{name: x}}": "s.yaml: overrides.name: a sweep gives each trial its own",
    f"{GRID}\noverrides: {{trainer.max_stesp: 3}}": (
        "s.yaml: overrides.trainer.max_stesp: unknown key; did you mean max_steps?"
    ),
}

PARAMETER_MISTAKES = {
    f"{RATE}: 3": "give choices: [...], or low: and high:",
    f"{RATE}: {{low: 1}}": "give choices: [...], or low: and high:",
    f"{RATE}: {{low: 1, hihg: 2}}": "unknown key; did you mean high?",
    f"{RATE}: {{low: 2, high: 1}}": "low <= high must hold, but got (low=2, high=1)",
    f"{RATE}: {{low: a, high: 1}}": "low: expected a number, got 'a'",
    f"{RATE}: {{low: .nan, high: 1}}": "low: expected a number, got nan",
    f"{RATE}: {{low: 0, high: 1, log: true}}": "low > 0 must hold for log=True, but got (low=0, high=1)",
    f"{RATE}: {{low: 0.1, high: 1, log: yes please}}": "log: expected true or false, got 'yes please'",
    f"{RATE}: {{low: 0.1, high: 1, log: true, step: 0.1}}": "step is not supported when log is true",
    f"{RATE}: {{low: 0.1, high: 1, step: 0}}": "step > 0 must hold, but got step=0",
    f"{RATE}: {{low: 0.5, high: 2, int: true}}": "low: expected a whole number, got 0.5",
    f"{RATE}: {{low: 0.1, high: 1}}": "a grid needs choices: or step:",
    f"{RATE}: {{choices: []}}": "choices: expected a list of values, got []",
    f"{RATE}: {{choices: [0.1, 0.1]}}": "choices: 0.1 stands there twice",
    f"{RATE}: {{choices: [0.1], low: 1}}": "choices and low exclude each other",
    f"{RATE}: {{choices: [0.1, fast]}}": "expected float, got fast",
    f"{RATE}: {{choices: [0.1, 7]}}": "model.optimizers.hidden: Spectron: lr must be in (0, 1]",
    "model.optimizers.hiddn.lr: {choices: [1]}": "model.optimizers.hiddn: unknown key; did you mean hidden?",
    "model.optimizers.hidden.lrr: {choices: [1]}": "unknown key; did you mean lr?",
    "model.decoder.width: {low: 64, high: 127.5, step: 63.5}": "expected int, got 64.0",
    "model.decoder.width: {low: 64, high: 127, step: 63}": "model.decoder: width must be a multiple of",
    "runs: {choices: [a]}": "a sweep gives each trial its own",
}


@pytest.mark.parametrize("text", SPACE_MISTAKES)
def test_a_wrong_space_is_refused_before_any_trial(text: str, refuse: Refuse) -> None:
    assert refuse(text).startswith(SPACE_MISTAKES[text])


@pytest.mark.parametrize("text", PARAMETER_MISTAKES)
def test_a_wrong_parameter_is_refused_with_its_place(text: str, refuse: Refuse) -> None:
    line = refuse(f"parameters: {{{text}}}")
    assert line.startswith(f"s.yaml: parameters.{text.partition(':')[0]}")
    assert PARAMETER_MISTAKES[text] in line


@pytest.mark.parametrize(
    ("flags", "start"),
    [
        (["--trainer.max_stesp", "3"], "--trainer.max_stesp: unknown key; did you mean max_steps?"),
        (["--trainer.max_steps"], "--trainer.max_steps: expected a value"),
        (["stray"], "stray: stands alone"),
        ([f"--{RATE}=1"], f"--{RATE}: is varied under parameters of s.yaml"),
        (["--name=x"], "--name: a sweep gives each trial its own"),
        (["--jobs=0"], "argument --jobs: expected a whole number, at least 1, got 0"),
        (["--study=a/b"], "--study is 'a/b': give the name of a folder inside runs"),
        (["--config=none.yaml"], "configuration file none.yaml does not exist"),
        (["--storage=nosql://host"], "--storage nosql://host: cannot be used"),
    ],
)
def test_a_wrong_flag_is_refused(flags: list[str], start: str, refuse: Refuse) -> None:
    assert refuse(GRID, *flags).startswith(start)


def test_a_missing_space_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(["sweep", "--space", "none.yaml"], capsys).startswith("configuration file none.yaml does not exist")


@pytest.mark.parametrize("file", SPACES, ids=lambda path: path.stem)
def test_a_shipped_space_fits_its_configuration(file: Path) -> None:
    space = read_space(file)
    assert yaml.safe_load(check(space))["trainer"]["max_steps"] in (100, 200)
    assert len(space.points()) in (len(space.first), space.trials)


def test_the_knobs_of_methods_have_equal_trials_and_begin_with_what_the_overlay_says() -> None:
    spaces = [read_space(file) for file in SPACES if file.stem.startswith("knobs_")]
    assert len(spaces) == 8
    assert {(space.trials, space.seeds, space.sampler, len(space.parameters)) for space in spaces} == {
        (16, (1000,), "tpe", 4),
        (16, (1000,), "tpe", 3),  # SCT's bases have no weight decay
    }
    for space in spaces:
        base = yaml.safe_load(check(space))
        first, *others = space.first
        assert all(sum(other[key] != first[key] for key in first) == 1 for other in others), space.path
        for key, value in first.items():
            at = base
            for part in key.split("."):
                at = at.get("init_args", at) if part not in at else at
                at = at[part]
            assert at == value, (space.path, key)


def test_the_shipped_rates_span_two_decades() -> None:
    (lr,) = read_space(CONFIGS / "sweeps" / "spectron_lr.yaml").parameters
    assert (len(lr.choices), lr.choices[0], lr.choices[-1]) == (9, 1e-3, 1e-1)


def test_numbers_with_an_exponent_and_lists_are_what_they_look_like(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        f"parameters: {{{RATE}: {{choices: [1e-3, 2e-3]}}, model.optimizers.other.betas: {{choices: [[0.9, 1e-1]]}},"
        " data.batch_size: {low: 2, high: 6, step: 2, int: true}}"
    )
    points = read_space(tmp_path / "s.yaml").points()
    assert len(points) == 6
    assert points[0] == {RATE: 0.001, "model.optimizers.other.betas": [0.9, 0.1], "data.batch_size": 2}
    assert [point["data.batch_size"] for point in points[:3]] == [2, 4, 6]


def test_real_trials_are_children_of_one_run_and_the_best_yaml_is_complete(
    tmp_path: Path, database: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    runs, space = tmp_path / "runs", tmp_path / "rates.yaml"
    runs.mkdir()
    shutil.copy(database, runs / "mlflow.db")
    space.write_text(f"{GRID}\nconfigs: [{CONFIGS}/quickstart.yaml]\n")
    settings = [flag for flag in toy.flags(toy.shards(tmp_path), runs) if not flag.startswith("--runs")]
    command = ["sweep", "--space", str(space), "--runs", str(runs), "--jobs", "2", *settings]
    assert main([*command, "--model.decoder.width=32", "--model.decoder.depth=1"]) == 0
    out = capsys.readouterr().out
    assert "study rates: 2 finished, 0 diverged, 0 failed, 0 not done" in out
    assert f"lrtrain fit --config {runs}/rates/best.yaml --runs {runs}" in out

    client = MlflowClient(f"sqlite:///{runs}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("lrtrain").experiment_id])
    (parent,) = [run for run in found if run.data.tags.get("lrtrain.sweep") == "rates"]
    children = [run for run in found if run.data.tags.get("lrtrain.study") == "rates"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert sorted(run.data.tags["lrtrain.trial"] for run in children) == ["1", "2"]
    assert {run.info.status for run in found} == {"FINISHED"}
    best = min(children, key=lambda run: run.data.metrics["Val/loss"])
    assert parent.data.metrics["Val/loss"] == best.data.metrics["Val/loss"]
    assert parent.data.tags["lrtrain.best"] == best.data.tags["lrtrain.trial"]

    trial = runs / f"rates/trial-000{best.data.tags['lrtrain.trial']}/0001"
    trained, written = (yaml.safe_load(file.read_text()) for file in (trial / "config.yaml", runs / "rates/best.yaml"))
    assert written["name"] == "rates-best"
    assert {key for key in trained if trained[key] != written[key]} == {"name", "runs", "trainer", "checkpoints"}
    assert {key for key, value in trained["trainer"].items() if value != written["trainer"][key]} == {"logger"}
    assert not list(runs.glob("rates/*/*/checkpoints"))
