"""What files and flags do to one another: lists are added to, and what a later one takes away is said."""

from pathlib import Path

import pytest
import yaml

from commandline import RECIPE
from lrtrain.cli.main import main
from lrtrain.config.overlaid import overlaid
from lrtrain.config.plan_parser import parse
from lrtrain.config.recipes import folder

TIMER = "{trainer: {callbacks+: [{class_path: lightning.pytorch.callbacks.Timer}]}}"
TELEMETRY = "{trainer: {callbacks: [{class_path: lrtrain.training.SpectralTelemetry}]}}"
CONFIGS = RECIPE.parent


def told(*argv: str) -> tuple[list[str], list[str]]:
    """The callbacks of quickstart with overlays and flags, and the lines about what was taken away."""
    parser, config = parse(["--config", str(RECIPE), *argv])
    given = config.trainer.callbacks or []
    given = given if isinstance(given, list) else [given]
    lines = [line.replace(f"{CONFIGS}/", "") for line in overlaid(parser.settings, config)]
    return [callback.class_path.rpartition(".")[2] for callback in given], lines


def files(tmp_path: Path, *contents: str) -> list[str]:
    """`--config` flags of shipped names, or of files with a content."""
    flags = []
    for number, content in enumerate(contents):
        file = tmp_path / f"{number}.yaml"
        if content.startswith("{"):
            file.write_text(content)
        flags += ["--config", str(file) if content.startswith("{") else content]
    return flags


def test_every_shipped_overlay_adds_to_the_lists_of_the_trainer() -> None:
    for file in folder().glob("[mp]*/*.yaml"):
        trainer = yaml.safe_load(file.read_text()).get("trainer", {})
        assert not {"callbacks", "logger", "plugins"} & set(trainer), file


def test_callbacks_of_several_overlays_are_all_there(tmp_path: Path) -> None:
    two = told(*files(tmp_path, "methods/ortho_only", "methods/selfguided"))[0]
    assert two == ["SpectralConstraints", "SelfGuidance"]
    names, lines = told(*files(tmp_path, TIMER, "methods/neither", TIMER))
    assert (names, lines) == (["Timer", "SpectralConstraints", "Timer"], [])


def test_a_second_callback_of_one_class_of_lrtrain_takes_the_place_of_the_first(tmp_path: Path) -> None:
    names, lines = told(*files(tmp_path, "methods/ortho_only", "methods/sct_bounded"))
    assert names == ["SpectralConstraints"]
    line = "trainer.callbacks: SpectralConstraints takes the place of that of methods/ortho_only.yaml"
    assert lines == [f"methods/sct_bounded.yaml: {line}"]


@pytest.mark.parametrize("value", ["", "null", "[]", "lrtrain.training.SelfGuidance"])
def test_a_list_that_takes_the_place_of_another_is_said(value: str, tmp_path: Path) -> None:
    timer, telemetry = files(tmp_path, TIMER, TELEMETRY)[1::2]
    later = [f"--trainer.callbacks={value}"] if value else ["--config", telemetry]
    (line,) = told("--config", timer, *later)[1]
    where = "--trainer.callbacks" if value else f"{telemetry}: trainer.callbacks"
    assert line == f"{where}: leaves out Timer, which trainer.callbacks+ would keep"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            ["--config", "methods/adamw"],
            "methods/adamw.yaml: model.optimizers.hidden: AdamW takes the place of Spectron, without momentum, "
            "nesterov",
        ),
        (
            ["--config", "methods/muon"],
            "methods/muon.yaml: model.optimizers.hidden: Muon takes the place of Spectron, keeping nesterov True",
        ),
        (
            ["--model.optimizers.hidden=AdamW", "--model.optimizers.hidden.eps=1e-9"],
            "--model.optimizers.hidden: AdamW takes the place of Spectron, without momentum, nesterov, "
            "keeping lr 0.035",
        ),
        (
            ["--model.decoder.mlp.class_path=lrtrain.nn.DenseLinear"],
            "--model.decoder.mlp.class_path: model.decoder.mlp: DenseLinear takes the place of LowRankLinear, "
            "without rank_ratio",
        ),
        (["--config", "methods/spectron_published", "--model.optimizers.hidden.lr=0.1"], ""),
        (["--model.optimizers.hidden=lrtrain.optim.Spectron"], ""),
    ],
)
def test_arguments_of_a_class_whose_place_another_takes_are_named(flags: list[str], line: str) -> None:
    assert told(*flags)[1] == [line] * bool(line)


def test_a_plan_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", str(RECIPE), "--model.optimizers.hidden=AdamW"]) == 0
    assert capsys.readouterr().out.startswith("--model.optimizers.hidden: AdamW takes the place of Spectron, without")


def test_a_variable_that_a_file_or_a_flag_overrules_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRTRAIN_TRAINER__MAX_STEPS", "3")
    monkeypatch.setenv("LRTRAIN_DATA__SEED", "3")
    monkeypatch.setenv("LRTRAIN_TRAINER__MAX_TIME", "00:00:01:00")
    assert told("--data.seed=4")[1] == [
        "LRTRAIN_TRAINER__MAX_STEPS: without effect, since quickstart.yaml sets trainer.max_steps",
        "LRTRAIN_DATA__SEED: without effect, since --data.seed sets data.seed",
    ]
