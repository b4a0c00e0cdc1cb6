"""A run that registers its model: a version in MLflow's registry, made of the exported folder, which MLflow loads."""

from pathlib import Path

import pytest

import toy
from commandline import RECIPE, refusal
from lrtrain.cli.main import main
from tracked import mlflow_run

MERGED = ["--export.format=merged", "--export.register=toys"]


def test_the_model_of_a_run_becomes_a_version_that_mlflow_loads(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow.transformers

    assert main(["fit", "--config", str(RECIPE), *toy.flags(toy.shards(root), root), *MERGED]) == 0
    assert "registered      toys, version 1\n" in capsys.readouterr().out
    client, run = mlflow_run(root / "quickstart/0001")
    (version,) = client.search_model_versions("name = 'toys'")
    assert version.run_id == run.info.run_id
    monkeypatch.setattr(mlflow, "get_tracking_uri", mlflow.get_tracking_uri)
    parts = mlflow.transformers.load_model(version.source, return_type="components")
    assert type(parts["model"]).__name__ == "LlamaForCausalLM"
    assert parts["model"].config.hidden_size == 64
    assert not list((root / "quickstart/0001").glob(".model-*"))


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--export.register=toys"], "export.register: MLflow's registry gets a stock Llama"),
        ([*MERGED, "--trainer.logger=false"], "export.register: this run is not in MLflow: set trainer.logger to null"),
    ],
)
def test_what_cannot_be_registered_is_refused_before_the_first_step(
    flags: list[str], line: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["fit", "--config", str(RECIPE), *toy.flags(toy.shards(root), root), *flags]
    assert line in refusal(command, capsys)
