"""`lrtrain fit --print-model`: every parameter once, with who trains it; FLOPs that add up; nothing left behind."""

from pathlib import Path

import pytest

from commandline import RECIPE, refusal
from lrtrain.cli.main import main
from lrtrain.config.plan_parser import parse
from lrtrain.studies.plan.layer_table import layers_of, merged
from lrtrain.studies.plan.planned_model import model_of

CONFIGS = RECIPE.parent


@pytest.mark.parametrize("overlay", ["methods/sct_angle", "methods/adamw", "methods/selfguided", "methods/dense"])
def test_parameters_and_flops_add_up_to_the_models(overlay: str) -> None:
    model = model_of(*parse(["--config", str(RECIPE), "--config", overlay]))
    layers = merged(layers_of(model, 512))
    assert sum(layer.parameters for layer in layers) == sum(p.numel() for p in model.decoder.parameters())
    assert sum(layer.flops for layer in layers) == model.decoder.flops_per_token(512)
    assert all(layer.optimizer for layer in layers if layer.parameters)
    assert sum(layer.times for layer in layers if layer.rank) == (0 if overlay.endswith("dense") else 4 * 7)


def test_a_head_that_is_the_embedding_has_flops_and_no_parameters() -> None:
    model = model_of(*parse(["--config", str(RECIPE), "--model.decoder.tie_embeddings=true"]))
    head = next(layer for layer in layers_of(model, 512) if layer.name == "head")
    assert (head.parameters, head.flops) == (0, 2 * model.decoder.head_VD.numel())


def test_blocks_that_differ_have_lines_of_their_own() -> None:
    other = "{'blocks.1.mlp.*': {class_path: lrtrain.nn.LowRankLinear, init_args: {rank: 8}}}"
    model = model_of(*parse(["--config", str(RECIPE), f"--model.decoder.overrides={other}"]))
    ranks = {layer.name: (layer.rank, layer.times) for layer in merged(layers_of(model, 512)) if "mlp.up" in layer.name}
    assert ranks == {"blocks.0,2-3.mlp.up": (64, 3), "blocks.1.mlp.up": (8, 1)}


def test_the_command_prints_it_and_makes_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", str(RECIPE), f"--runs={tmp_path}/runs", "--print-model"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "×", "shape", "kind", "rank", "parameters", "optimizer,", "lr", "FLOPs"]
    assert any("Spectron 0.035" in line and "LowRankLinear" in line for line in lines)
    assert not list(tmp_path.iterdir())
    line = refusal(["fit", "--config", str(RECIPE), "--print-model", "--model.decoder.depht=3"], capsys)
    assert "--model.decoder.depht" in line
