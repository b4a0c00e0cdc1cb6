"""How a run ends: with a validation of its last weights; and what the steps and means of its record are."""

from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from commandline import arguments
from lrtrain.checkpoint.directory import steps_in
from lrtrain.cli.main import main
from observers import ObservingLogger
from run_record import series
from spectral_runs import ACCUMULATE, STEPS, batches, language_model, trainer


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("flags", "last", "validated"),
    [
        (["--trainer.max_steps=5"], 5, [2, 4, 5]),
        (["--trainer.max_steps=4"], 4, [2, 4]),
        (["--trainer.max_steps=3", "--trainer.val_check_interval=100"], 3, [3]),
        (["--trainer.max_steps=-1", "--trainer.max_epochs=1", "--trainer.limit_train_batches=5"], 5, [2, 4, 5]),
        (["--trainer.max_steps=3", "--trainer.accumulate_grad_batches=3"], 3, [0, 1, 2, 3]),
        (["--trainer.max_steps=3", "--trainer.limit_val_batches=0"], 3, []),
    ],
    ids=["between two", "at one", "before the first", "by epochs", "while accumulating", "without any"],
)
def test_a_run_ends_with_a_validation_of_its_last_weights_and_every_figure_names_its_step(
    flags: list[str], last: int, validated: list[int], shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = arguments(shards, tmp_path, "--trainer.logger=true", "--name=x", *flags)
    assert main(["fit", *argv]) == 0
    run, said = tmp_path / "x/0001", capsys.readouterr().out
    assert list(steps_in(run / "checkpoints")) == [last]
    losses = series(run, "val/loss")
    assert [step for step, _ in series(run, "train/loss")] == list(range(1, last + 1))
    assert [step for step, _ in losses] == validated
    assert (f"   step {last}\n" in said) == bool(validated)
    if validated:
        assert main(["validate", *argv]) == 0
        assert f"val/loss             {losses[-1][1]:.4f}\n" in capsys.readouterr().out


def test_train_loss_is_the_mean_over_the_micro_batches_of_a_step(tmp_path: Path) -> None:
    model, losses = language_model("mixed"), []
    step = model.training_step

    def training_step(batch: Any, batch_idx: int) -> Any:
        losses.append(step(batch, batch_idx))
        return losses[-1]

    model.training_step = training_step  # type: ignore[method-assign]
    logger = ObservingLogger(model)
    trainer(tmp_path, [], logger=logger).fit(model, batches())
    means = torch.stack(losses).detach().view(STEPS, ACCUMULATE).mean(1).tolist()
    found = {step: metrics["train/loss"] for step, metrics in logger.points if "train/loss" in metrics}
    assert found == pytest.approx(dict(enumerate(means, start=1)), rel=1e-6)
    assert means[0] != float(losses[1])


def test_a_run_whose_model_became_nan_ends_with_its_summary(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = ["--model.optimizers.other.lr=1e30", "--trainer.gradient_clip_val=null"]
    with pytest.warns(UserWarning, match="is skipped: non-finite gradient"):
        assert main(["fit", *arguments(shards, tmp_path, *wild, steps=4)]) == 0
    said = capsys.readouterr().out
    assert "validation      loss nan   perplexity nan" in said
    assert "sample          none: the model's logits are no finite numbers" in said


@pytest.mark.parametrize("resumed", [False, True])
def test_a_fast_dev_run_leaves_nothing(
    resumed: bool, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--trainer.logger=true", "--checkpoints.every_n_steps=1", "--checkpoints.keep=-1"]
    if resumed:
        assert main(["fit", *arguments(shards, tmp_path, *flags, steps=4)]) == 0
        flags.append(f"--ckpt_path={tmp_path}/quickstart/0001/checkpoints/step-00000001.ckpt")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["fit", *arguments(shards, tmp_path, *flags, "--trainer.fast_dev_run=3")]) == 0
    assert "   step 3\n" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert resumed or not any(tmp_path.iterdir())
