"""What a plan says of optimizers and constraints that it does not know: measured, named as not counted, or refused."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.optim import SGD, Adam, AdamW, Muon

import own_parts
from commandline import RECIPE, refusal
from lrtrain.cli.main import main
from lrtrain.optim import Spectron, Stiefel, stated
from lrtrain.studies.plan.optimizer_step import measured_flops

TOY = ["--model.decoder.width=64", "--model.decoder.heads=2", "--model.decoder.ffn_width=96", "--data.block_size=32"]
SHAPE = torch.Size((64, 16))


def planned(folder: Path, hidden: str | None, *constraints: str) -> list[str]:
    """Arguments of `plan` for quickstart at toy size with another optimizer of the projections, and constraints."""
    callback = {"class_path": "lrtrain.training.SpectralConstraints", "init_args": {"constraints": list(constraints)}}
    settings: dict[str, Any] = {"trainer": {"callbacks": [callback]}} if constraints else {}
    if hidden is not None:
        settings["model"] = {"optimizers": {"hidden": {"class_path": hidden, "init_args": {"lr": 0.01}}}}
    file = folder / "own.yaml"
    file.write_text(yaml.safe_dump(settings))
    return ["plan", "--config", str(RECIPE), "--config", str(file), *TOY]


def flops(folder: Path, *arguments: Any) -> dict[str, Any]:
    file = folder / "plan.json"
    assert main([*planned(folder, *arguments), "--json", str(file)]) == 0
    return json.loads(file.read_text())["flops"]


@pytest.mark.parametrize(
    "make",
    [
        AdamW,
        Adam,
        SGD,
        partial(SGD, momentum=0.9),
        Muon,
        Spectron,
        partial(Spectron, strict=True),
        Stiefel,
        partial(Stiefel, direction="adam"),
    ],
)
def test_what_is_stated_is_about_what_is_measured(make: Any) -> None:
    optimizer = make([("p", nn.Parameter(torch.empty(SHAPE, device="meta")))])
    (group,) = optimizer.param_groups
    counted = measured_flops(make, SHAPE, fused=False)
    assert counted.total == pytest.approx(stated(optimizer, "step_flops")(group, group["params"][0]), rel=0.3)
    assert counted.missing == set()


def test_an_unknown_optimizer_is_measured_and_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = flops(tmp_path, "own_parts.Velocity")
    stated_flops = flops(tmp_path, "own_parts.StatedVelocity")
    assert found["optimizer"] == stated_flops["optimizer"]  # 4 a number, as it computes
    assert found["notes"] == ["Velocity: FLOPs measured on a step, since it states no step_flops"]
    assert found["notes"][0] in capsys.readouterr().out
    assert stated_flops["notes"] == []


def test_an_operator_without_a_formula_is_named() -> None:
    counted = measured_flops(own_parts.Eigen, SHAPE, fused=False)
    assert counted.missing == {"linalg_qr"}
    assert counted.total == 4 * SHAPE.numel() + 2 * 64 * 64 * 16
    assert measured_flops(partial(AdamW, fused=True), SHAPE, fused=True).missing >= {"_fused_adamw"}


@pytest.mark.parametrize("name", ["NAdam", "RAdam", "Adafactor", "Adagrad", "RMSprop", "Adamax"])
def test_torchs_other_optimizers_are_measured(name: str) -> None:
    counted = measured_flops(getattr(torch.optim, name), SHAPE, fused=False)
    assert 8 * SHAPE.numel() <= counted.total <= 20 * SHAPE.numel()
    assert counted.missing == set()


def test_an_own_constraint_is_counted_as_it_states_or_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = flops(tmp_path, None, "own_parts.UnitColumns", "lrtrain.constraints.SpectralRenormalization")
    assert found["constraints"].keys() == {"SpectralRenormalization"}
    assert found["notes"] == ["UnitColumns is not counted: it has no step_flops"]
    assert found["notes"][0] in capsys.readouterr().out


def test_a_constraint_with_nothing_to_hold_is_refused_as_fit_refuses_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(planned(tmp_path, None, "lrtrain.constraints.StiefelRetraction"), capsys)
    assert line.startswith("trainer.callbacks: SpectralConstraints, StiefelRetraction: the model has no spectral")
    line = refusal(planned(tmp_path, None, "lrtrain.constraints.StiefelRetracton"), capsys)
    assert "init_args.constraints[0]: the module lrtrain.constraints has no StiefelRetracton" in line


def test_an_optimizer_that_needs_numbers_is_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(planned(tmp_path, "own_parts.Stubborn"), capsys)
    assert line.startswith("model.optimizers: Stubborn makes no step without numbers, as a plan needs it (")
