"""A user's own constraint and optimizers by class path: they train, resume, and are refused in a line."""

import warnings
from pathlib import Path

import pytest
import torch
import yaml

import toy
from commandline import RECIPE, arguments, refusal
from lrtrain.cli.main import main

CONFIGS = RECIPE.parent


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("own"))


def overlay(folder: Path, constraints: list[object] | None, hidden: str | None = None) -> list[str]:
    """Flags that name constraints and the optimizer of the projections."""
    settings: dict[str, object] = {}
    if constraints is not None:
        callback = {"class_path": "lrtrain.training.SpectralConstraints", "init_args": {"constraints": constraints}}
        settings["trainer"] = {"callbacks": [callback]}
    if hidden is not None:
        settings["model"] = {"optimizers": {"hidden": {"class_path": hidden, "init_args": {"lr": 0.01}}}}
    file = folder / "own.yaml"
    file.write_text(yaml.safe_dump(settings))
    return ["--config", str(file)]


def spectral() -> list[str]:
    return ["--config", str(CONFIGS / "methods" / "sct_reference.yaml")]


def saved(runs: Path) -> dict:
    return torch.load(max(runs.glob("*/*/checkpoints/*.ckpt")), weights_only=True)


def test_an_own_constraint_and_an_own_optimizer_train_and_go_on(tmp_path: Path, shards: Path) -> None:
    constraint = {"class_path": "own_parts.UnitColumns", "init_args": {"length": 0.5}}
    own = overlay(tmp_path, [constraint], "own_parts.Velocity")
    assert main(["fit", *arguments(shards, tmp_path / "runs", *own)]) == 0
    state = saved(tmp_path / "runs")
    assert state["callbacks"]["SpectralConstraints"] == {"UnitColumns": {"steps": 2}}
    factors = [p for name, p in state["state_dict"].items() if name[-2:] in (".A", ".B")]
    assert len(factors) == 28
    for factor in factors:
        torch.testing.assert_close(factor.norm(dim=0), torch.full(factor.shape[1:], 0.5))
    assert main(["fit", *arguments(shards, tmp_path / "runs", *own, "--ckpt_path=last", steps=3)]) == 0
    assert saved(tmp_path / "runs")["callbacks"]["SpectralConstraints"] == {"UnitColumns": {"steps": 3}}


def test_a_momentum_of_another_name_is_transported_once_it_is_stated(tmp_path: Path, shards: Path) -> None:
    transport = {"class_path": "lrtrain.constraints.StiefelRetraction", "init_args": {"transport": True}}
    own = overlay(tmp_path, [transport], "own_parts.StatedVelocity")
    assert main(["fit", *arguments(shards, tmp_path / "runs", *spectral(), *own)]) == 0
    state = saved(tmp_path / "runs")
    optimizer = state["optimizer_states"][0]
    weights, seen = state["state_dict"], 0
    for group in optimizer["param_groups"]:
        for name, index in zip(group["param_names"], group["params"], strict=True):
            if name[-2:] in (".U", ".V"):
                velocity = optimizer["state"][index]["velocity"]
                product = weights[name].mT @ velocity / velocity.norm()
                torch.testing.assert_close(product, -product.mT, rtol=0, atol=1e-6)
                seen += 1
    assert seen == 28


RETRACT, PRESERVE = "lrtrain.constraints.StiefelRetraction", "lrtrain.constraints.FunctionPreservingRetraction"
TRANSPORT = {"class_path": RETRACT, "init_args": {"transport": True}}


@pytest.mark.parametrize(
    ("hidden", "constraint", "says"),
    [
        ("own_parts.Velocity", TRANSPORT, "StiefelRetraction: Velocity, the optimizer of decoder.blocks.0."),
        ("own_parts.OwnAdamW", TRANSPORT, "StiefelRetraction: OwnAdamW, the optimizer of decoder.blocks.0."),
        ("own_parts.Velocity", PRESERVE, "FunctionPreservingRetraction: Velocity, the optimizer of decoder.blocks.0."),
        ("torch.optim.Adafactor", PRESERVE, "FunctionPreservingRetraction: Adafactor, the optimizer of decoder."),
        ("own_parts.MisstatedVelocity", TRANSPORT, "StiefelRetraction: MisstatedVelocity keeps 'velocity' for each"),
        ("own_parts.MisstatedVelocity", PRESERVE, "FunctionPreservingRetraction: MisstatedVelocity keeps 'velocity'"),
        (None, "own_parts.UnitColumns", "UnitColumns: the model has no factors; use lrtrain.nn.LowRankLinear or"),
    ],
)
def test_what_cannot_be_held_or_followed_is_refused_in_a_line(
    hidden: str | None,
    constraint: object,
    says: str,
    tmp_path: Path,
    shards: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = overlay(tmp_path, [constraint], hidden)
    line = refusal(["fit", *arguments(shards, tmp_path / "runs", *spectral(), *own)], capsys)
    assert line.startswith(f"trainer.callbacks: SpectralConstraints, {says}")


def test_a_plain_sgd_has_no_momentum_to_transport(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = overlay(tmp_path, [TRANSPORT], "torch.optim.SGD")
    line = refusal(["fit", *arguments(shards, tmp_path / "runs", *spectral(), *own)], capsys)
    assert "StiefelRetraction: SGD keeps no first moment" in line


def test_a_wrong_constraint_in_the_list_is_named(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for constraint in ("lrtrain.constraints.StiefelRetracton", "torch.nn.Linear", 3):
        own = overlay(tmp_path, [constraint])
        line = refusal(["fit", *arguments(shards, tmp_path / "runs", *own)], capsys)
        assert "own.yaml: trainer.callbacks[0].init_args.constraints" in line


@pytest.mark.parametrize(
    ("constraints", "warned"),
    [
        (["own_parts.UnitColumns"], True),
        (["own_parts.UnitColumns", "lrtrain.constraints.SpectralRenormalization"], False),
        ([], False),
    ],
)
def test_a_list_that_leaves_out_what_the_projections_need_is_warned_of(
    constraints: list[object], warned: bool, tmp_path: Path, shards: Path
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main(["fit", *arguments(shards, tmp_path / "runs", *overlay(tmp_path, constraints))]) == 0
    said = [line for line in map(str, (warning.message for warning in caught)) if "leaves out" in line]
    assert [("lrtrain.constraints.SpectralRenormalization" in line) for line in said] == [True] * warned


def warned(argv: list[str]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main(["fit", *argv]) == 0
    return [str(warning.message) for warning in caught]


SCALES = "lrtrain.constraints.SpectralRenormalization"


def test_step_scales_that_reach_a_part_alone_are_told(tmp_path: Path, shards: Path) -> None:
    adamw = "--model.optimizers.overrides={'*.attention.*': {class_path: torch.optim.AdamW}}"
    listed = [*arguments(shards, tmp_path / "runs", *overlay(tmp_path, [SCALES])), adamw]
    (line,) = [line for line in warned(listed) if "pairs A, B" in line]
    part = "the optimizer of decoder.blocks.0.attention.query and 7 more takes no step scales"
    assert line == f"SpectralConstraints: SpectralRenormalization holds 6 of 14 pairs A, B: {part}"
    plain = arguments(shards, tmp_path / "runs", "--model.decoder.mlp=own_modules.CoLA")
    (line,) = [line for line in warned(plain) if "step scale" in line]
    number = "12 of 28 parameters of Spectron get no step scale and move by the learning rate itself"
    assert line == f"SpectralConstraints: {number}: decoder.blocks.0.mlp.gate.A and 11 more belong to no pair A, B"
    assert not [line for line in warned(arguments(shards, tmp_path / "runs")) if "SpectralConstraints" in line]


def test_the_state_of_a_constraint_that_is_gone_is_told(tmp_path: Path, shards: Path) -> None:
    runs = tmp_path / "runs"
    assert main(["fit", *arguments(shards, runs)]) == 0
    more = [*overlay(tmp_path, ["own_parts.UnitColumns"]), "--ckpt_path=last"]
    said = warned(arguments(shards, runs, *more, steps=3))
    lost = "the checkpoint's state of the constraint SpectralRenormalization is left out: the run has no such one"
    assert lost in said
