"""The experiments that do more than train: the memory table, and the conversion of dense models."""

import copy
import json
from pathlib import Path

import pytest
import torch
import yaml

import toy
from commandline import RECIPE, refusal
from experiment_file import write
from lrtrain.cli.main import main
from lrtrain.nn import Decoder, DenseLinear
from lrtrain.runtime.errors import UserError
from lrtrain.studies.experiments import measured_memory as memory
from lrtrain.studies.experiments.conversion import Task, convert
from own_modules import CoLA


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


def test_a_published_figure_that_is_not_met_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PUBLISHED", {"small": (64, 96)})
    rows = memory.measure_rows(1)
    assert rows[0].dense_measured == rows[0].dense
    assert rows[0].spectral_measured == rows[0].spectral
    right = [round(rows[0].dense / 1e6, 3), round(rows[0].spectral / 1e6, 3), round(rows[0].ratio, 2)]
    assert [finding.outcome for finding in memory.findings(rows, {"small": right})] == ["reproduced"] * 2
    wrong = memory.findings(rows, {"small": [*right[:2], 2.0]})
    assert (wrong[0].outcome, wrong[0].text) == ("not reproduced", f"small ratio {right[2]:.2f}, the paper's 2.0")
    with pytest.raises(UserError, match=r"published.small: expected MB dense, MB spectral and ratio, got None"):
        memory.findings(rows, {})


def test_a_conversion_of_full_rank_changes_nothing_and_its_size_is_known_without_weights() -> None:
    torch.manual_seed(0)
    decoder = Decoder(50, 16, 2, 2, 24, DenseLinear, DenseLinear)
    tokens = torch.randint(50, (2, 8))
    with torch.no_grad():
        expected = decoder(tokens)
        for task in (Task(rank=16), Task(energy=1.0)):
            torch.testing.assert_close(convert(decoder, task)(tokens), expected, atol=1e-5, rtol=1e-5)
    half = convert(decoder, Task(energy=0.5))
    assert [type(m).__name__ for m in half.blocks[1].mlp.children()] == ["SpectralLinear"] * 3
    with torch.device("meta"):
        planned = Decoder(50, 16, 2, 2, 24, DenseLinear, DenseLinear)
    sizes = [sum(p.numel() for p in convert(one, Task(rank=4)).parameters()) for one in (decoder, planned)]
    assert sizes[0] == sizes[1] < sum(p.numel() for p in decoder.parameters())
    with pytest.raises(UserError, match=r"converted: blocks\.0\.mlp\.gate: rank must be between 1 and .* = 16, got 17"):
        convert(decoder, Task(rank=17))
    broken = copy.deepcopy(decoder)
    torch.nn.init.constant_(broken.blocks[1].mlp.up.weight, torch.nan)
    with pytest.raises(UserError, match=r"converted: blocks\.\d\.mlp\.up: its weight holds NaN"):
        convert(broken, Task(rank=4))
    with pytest.raises(UserError, match=r"converted: the pattern 'blocks\.0\.mlp\.gate' matches no linear layer"):
        convert(Decoder(50, 16, 2, 2, 24, DenseLinear, CoLA), Task(rank=4))


def test_a_model_that_was_trained_before_is_converted_as_it_is(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scale = yaml.safe_load(Path(write(tmp_path, shards)[1]).read_text())["scales"]["tiny"]
    scale |= {"seeds": 2, "ranks": [4], "energies": [], "steps": 2, "lr": 0.001, "pretrained": True}
    scale["settings"] |= {"model.decoder.width": 32, "trainer.max_steps": 2}
    overlay = str(RECIPE.parent / "methods" / "dense.yaml")
    flags = [
        f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in scale["settings"].items()
    ]
    fit = ["fit", "--config", str(RECIPE), "--config", overlay, *flags, "--runs", str(tmp_path / "before")]
    assert main(fit) == 0
    variants = {"dense": {"overlays": [overlay], "lr": 0.004}}

    def experiment(**settings: object) -> list[str]:
        own = {**scale, "settings": {**scale["settings"], **settings}}
        return write(tmp_path, shards, kind="conversion", scales={"tiny": own}, variants=variants, checks=[], figure=[])

    assert "the recipe has no init_from" in refusal(experiment(), capsys)
    argv = experiment(init_from=str(tmp_path / "before"))
    assert main(argv) == 0
    folder = tmp_path / "runs/experiments/widths-tiny"
    assert [one.name for one in (tmp_path / "runs").iterdir()] == ["experiments"]  # nothing was trained before
    dense, low = json.loads((folder / "results.json").read_text())["converted"]
    assert dense["as_converted"][0] == dense["as_converted"][1] < low["as_converted"][0]
    assert len(set(dense["fine_tuned"])) == len(set(low["fine_tuned"])) == 2
    kept = json.loads((folder / "converted.json").read_text())
    assert main(argv) == 0
    assert json.loads((folder / "converted.json").read_text()) == kept
    assert main(experiment(init_from=str(tmp_path / "before"), **{"trainer.limit_val_batches": 1})) == 0
    again = json.loads((folder / "converted.json").read_text())
    assert len(again) == 2 * len(kept)  # other held-out text: nothing of before is taken for it


def test_real_dense_models_are_converted_and_fine_tuned(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scale = yaml.safe_load(Path(write(tmp_path, shards)[1]).read_text())["scales"]["tiny"]
    scale |= {"seeds": 1, "ranks": [4], "energies": [0.9], "steps": 2, "lr": 0.001}
    scale["settings"] |= {"model.decoder.width": 32, "trainer.max_steps": 2}
    overlay = RECIPE.parent / "methods" / "dense.yaml"
    variants = {"dense": {"overlays": [str(overlay)], "tiny": {"lr": 0.004, "search": False}}}
    argv = write(tmp_path, shards, kind="conversion", scales={"tiny": scale}, variants=variants, checks=[], figure=[])
    assert main(argv) == 0
    assert "verdict: not comparable: one seed has no spread" in capsys.readouterr().out
    folder = tmp_path / "runs/experiments/widths-tiny"
    converted = json.loads((folder / "results.json").read_text())["converted"]
    assert [row["model"] for row in converted] == ["dense", "rank 4", "energy 0.9"]
    assert converted[1]["mean_rank"] == 4
    assert converted[1]["parameters"] < converted[0]["parameters"]
    assert converted[1]["as_converted"][0] > converted[0]["as_converted"][0]
    assert all(row["fine_tuned"][0] < row["as_converted"][0] for row in converted)
    kept = (folder / "converted.json").read_bytes()
    assert main(argv) == 0
    assert (folder / "converted.json").read_bytes() == kept
    assert (folder / "figure.png").exists()
