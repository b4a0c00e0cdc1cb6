"""What `lrtrain plan` counts of parts that it does not know: projections, losses, decoders."""

import json
from pathlib import Path
from typing import Any

import pytest

from commandline import RECIPE, refusal
from lrtrain.cli.main import main

TOY = [
    *("--config", str(RECIPE), "--model.decoder.width=64", "--model.decoder.heads=2", "--model.decoder.ffn_width=96"),
    *("--model.decoder.vocab_size=300", "--data.block_size=32", "--trainer.precision=32-true"),
]
COLA = [f"--model.decoder.{part}=own_modules.CoLA" for part in ("attention", "mlp")]
NESTED = [f"--model.decoder.{part}=own_modules.Nested" for part in ("attention", "mlp")]


def planned(tmp_path: Path, *more: str) -> dict[str, Any]:
    file = tmp_path / "plan.json"
    assert main(["plan", *TOY, *more, "--json", str(file)]) == 0
    return json.loads(file.read_text())


def test_a_plain_projection_counts_like_the_one_with_its_matrices(tmp_path: Path) -> None:
    low_rank, cola = planned(tmp_path), planned(tmp_path, *COLA)
    for part in ("total", "dense"):
        assert cola["parameters"][part] == low_rank["parameters"][part]
    for part in ("forward", "dense", "backward", "optimizer"):
        assert cola["flops"][part] == low_rank["flops"][part]
    assert [len(found["flops"]["constraints"]) for found in (cola, low_rank)] == [0, 1]
    assert [kind["form"] for kind in cola["parameters"]["kinds"][3:]] == ["CoLA", "CoLA"]
    assert cola["optimizers"] == low_rank["optimizers"]
    assert (
        cola["memory"][0]["kept"]["activations"] > low_rank["memory"][0]["kept"]["activations"]
    )  # silu keeps its input


def test_parameters_deep_inside_a_projection_are_the_projections(tmp_path: Path) -> None:
    nested = planned(tmp_path, *NESTED, "--model.optimizers.hidden=torch.optim.AdamW")
    hidden = next(slot for slot in nested["optimizers"] if slot["pattern"] == "hidden")
    inside = sum(6 * into + 2 * (6 + out) for into, out in [(64, 64)] * 4 + [(64, 96)] * 2 + [(96, 64)])
    assert hidden["parameters"] == 4 * inside
    kinds = {kind["name"]: kind for kind in nested["parameters"]["kinds"]}
    assert kinds["attention"]["parameters"] + kinds["mlp"]["parameters"] == 4 * inside
    assert kinds["attention"]["dense"] + kinds["mlp"]["dense"] == 4 * (4 * 64 * 64 + 3 * 64 * 96)


def test_a_loss_of_ones_own_costs_its_products_and_keeps_its_logits(tmp_path: Path) -> None:
    usual, own = planned(tmp_path), planned(tmp_path, "--model.loss=own_modules.ZLoss")
    assert usual["flops"]["loss"] == 0
    assert own["flops"]["loss"] == 3 * 2 * 300 * 64  # the logits once more, and their two gradients
    assert own["flops"]["per_token"] - usual["flops"]["per_token"] == pytest.approx(own["flops"]["loss"])
    more = own["memory"][0]["kept"]["activations"] - usual["memory"][0]["kept"]["activations"]
    assert more >= 16 * 32 * 300 * 4  # float32 logits of a micro-batch
    teacher = planned(tmp_path, "--model.loss=own_modules.Teacher", "--model.loss.vocab_size=300")
    assert teacher["memory"][0]["kept"]["weights"] - usual["memory"][0]["kept"]["weights"] == 300 * 300 * 4


def test_a_decoder_of_ones_own_is_counted_whole(tmp_path: Path) -> None:
    usual, own = planned(tmp_path), planned(tmp_path, "--model.decoder=own_modules.Scaled")
    for part in ("parameters", "flops", "optimizers"):
        assert own[part] == usual[part]
    deeper = planned(tmp_path, "--model.decoder=own_modules.Extended")
    others = [kind for kind in deeper["parameters"]["kinds"] if kind["name"] == "other"]
    assert [kind["parameters"] for kind in others] == [64 * 64]
    assert deeper["flops"]["forward"] == usual["flops"]["forward"] + 2 * 64 * 64
    assert deeper["parameters"]["total"] == usual["parameters"]["total"] + 64 * 64


def test_blocks_that_differ_are_measured_each(tmp_path: Path) -> None:
    usual = planned(tmp_path)
    half = {"class_path": "lrtrain.nn.LowRankLinear", "init_args": {"rank": 8}}
    overrides = json.dumps({"blocks.0.*": half})
    less = planned(tmp_path, f"--model.decoder.overrides={overrides}")
    least = planned(tmp_path, f"--model.decoder.overrides={json.dumps({'*': half})}")
    unlike = planned(tmp_path, "--model.decoder=own_modules.Unlike")
    for form in ("kept", "recomputed"):
        for part in ("weights", "activations", "peak"):
            found = [plan["memory"][0][form][part] for plan in (least, less, usual)]
            assert found == sorted(found)
    assert unlike["memory"][0]["kept"]["activations"] < usual["memory"][0]["kept"]["activations"]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--model.loss=own_modules.reading_loss"], "model.loss: it cannot be measured without data"),
        (["--model.decoder=own_modules.Foreign"], "model.decoder: Foreign has blocks that are no lrtrain.nn.decoder.B"),
        (["--model.decoder=own_modules.Uncounted"], "model.decoder: Uncounted computes "),
        (["--model.decoder.mlp=own_modules.Scale"], "model.decoder: own_modules.Scale has no matrix product"),
        (["--model.decoder.mlp=own_modules.Narrow"], "model.decoder: own_modules.Narrow makes"),
    ],
)
def test_what_cannot_be_counted_is_refused_in_a_line(
    more: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(["plan", *TOY, *more], capsys).startswith(line)
