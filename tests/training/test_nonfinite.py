"""Infinities and NaNs in gradients: the step is skipped whole, counted, and after too many in a row the run ends."""

import copy
import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.distributed.tensor import DTensor

import toy
from checkpoint_state import differences
from commandline import arguments, refusal
from forked import FORK
from lrtrain.checkpoint.checkpoints import Checkpoints
from lrtrain.cli.main import main
from lrtrain.runtime.errors import UserError
from lrtrain.training.callbacks.nonfinite import NonFiniteGradients, _non_finite
from lrtrain.training.callbacks.spectral_constraints import SpectralConstraints
from nonfinite_shards import shard_decides
from ranks import free_port
from spectral_runs import STEPS, batches, every_kind, language_model, trainer


class Poison(L.Callback):
    """Puts a bad number into one gradient, each process into its shard, at chosen optimizer steps, counted from 0."""

    def __init__(self, steps: list[int], number: float = float("nan"), name: str = "decoder.norm.weight") -> None:
        self.steps, self.number, self.name = steps, number, name

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step in self.steps:
            gradient = pl_module.get_parameter(self.name).grad
            assert gradient is not None
            local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            local.view(-1)[-1] = self.number


class States(L.Callback):
    """What a step may change, after each step."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step > len(self.seen):
            constraints = [c.state_dict() for c in trainer.callbacks if isinstance(c, SpectralConstraints)]  # type: ignore[attr-defined]
            optimizer = trainer.optimizers[0]
            state = {"weights": pl_module.state_dict(), "optimizer": optimizer.state_dict()["state"]}
            self.seen.append(copy.deepcopy({**state, "constraints": constraints}))


class Points(Logger):
    name, version = "points", 0

    def __init__(self) -> None:
        super().__init__()
        self.skipped: list[tuple[int, float]] = []

    def log_hyperparams(self, *_: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "train/skipped_steps" in metrics:
            self.skipped.append((step or 0, metrics["train/skipped_steps"]))


@every_kind
@pytest.mark.parametrize("number", [float("nan"), float("inf")], ids=str)
def test_a_skipped_step_leaves_weights_optimizer_and_constraints_as_they_are(
    kind: str, number: float, tmp_path: Path
) -> None:
    states, points, model = States(), Points(), language_model(kind)
    run = trainer(tmp_path, [NonFiniteGradients(), Poison([2, 4], number), states], logger=points)
    with pytest.warns(UserWarning, match=r"step 3 is skipped: non-finite gradient in decoder\.norm\.weight$"):
        run.fit(model, batches(), batches(1))
    same = [not differences(a, b) for a, b in zip(states.seen, states.seen[1:], strict=False)]
    assert same == [False, True, False, True, False]
    assert run.global_step == STEPS
    assert points.skipped == [(3, 1.0), (5, 2.0)]
    assert all(p.isfinite().all() for p in model.parameters())


def test_skipping_changes_nothing_in_a_run_whose_gradients_are_finite(tmp_path: Path) -> None:
    found = []
    for callbacks in ([NonFiniteGradients()], []):
        model = language_model("mixed")
        trainer(tmp_path, callbacks).fit(model, batches())
        found.append(model.state_dict())
    assert not differences(*found)


@pytest.mark.parametrize(
    ("numbers", "bad"),
    [([1.0, -3e38], False), ([1.0, float("nan")], True), ([float("-inf"), 1.0], True), ([3e38, float("inf")], True)],
)
def test_a_number_is_bad_when_it_is_not_finite_however_large_the_finite_ones_are(
    numbers: list[float], bad: bool
) -> None:
    strategy = SingleDeviceStrategy(torch.device("cpu"))
    for dtype in (torch.float32, torch.bfloat16):
        gradients = {"a": torch.ones(3), "b": torch.tensor(numbers, dtype=dtype), "empty": torch.empty(0, 4)}
        assert _non_finite(gradients, strategy) == (["b"] if bad else [])
    assert _non_finite({}, strategy) == []


def test_bad_steps_that_are_not_in_a_row_do_not_end_the_run(tmp_path: Path) -> None:
    run = trainer(tmp_path, [NonFiniteGradients(stop_after=2), Poison([0, 2, 4])])
    run.fit(language_model("mixed"), batches())
    assert run.global_step == STEPS


@pytest.mark.parametrize("validate_every", [10, 99], ids=["at validation", "at the next batch"])
def test_too_many_in_a_row_end_the_run_with_a_checkpoint_of_the_last_good_weights(
    validate_every: int, tmp_path: Path
) -> None:
    states, model = States(), language_model("mixed")
    callbacks = [NonFiniteGradients(stop_after=3), Poison([2, 3, 4]), states, Checkpoints()]
    run = trainer(tmp_path, callbacks, enable_checkpointing=True, val_check_interval=validate_every, max_steps=50)
    line = (
        r"stopped at step 5: non-finite gradients in 3 steps in a row, from step 3 on, first in decoder\.norm\.weight; "
    )
    with pytest.raises(UserError, match=line) as error:
        run.fit(model, batches(100), batches(1))
    assert "\n" not in str(error.value)
    (file,) = (tmp_path / "checkpoints").iterdir()
    assert file.name == "step-00000005.ckpt"
    saved = torch.load(file, weights_only=True)
    assert not differences(saved["state_dict"], states.seen[1]["weights"])
    assert saved["lrtrain"]["validation_due"] == (validate_every == 10)
    again = language_model("mixed")
    resumed = trainer(tmp_path, [NonFiniteGradients(stop_after=3), Checkpoints()], enable_checkpointing=True)
    resumed.fit(again, batches(), ckpt_path=file, weights_only=True)
    assert resumed.global_step == STEPS
    assert differences(again.state_dict(), saved["state_dict"])


@pytest.mark.parametrize(("scale", "stops"), [(2.0**16, False), (1.0, True)])
def test_a_loss_scaler_may_search_for_its_scale(scale: float, stops: bool, tmp_path: Path) -> None:
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
    nonfinite, states = NonFiniteGradients(stop_after=2), States()
    run = trainer(
        tmp_path, [nonfinite, Poison([1, 2, 3]), states], precision=None, plugins=[precision], gradient_clip_val=None
    )
    if stops:
        with pytest.raises(UserError, match="stopped at step 3"):
            run.fit(language_model("mixed"), batches())
    else:
        run.fit(language_model("mixed"), batches())
        assert nonfinite.skipped == 3
        assert precision.scaler is not None
        assert precision.scaler.get_scale() == scale / 8
        assert differences(states.seen[3], states.seen[4])
    assert not differences(states.seen[0], states.seen[2])


@pytest.mark.parametrize("value", [0, -1])
def test_a_limit_below_one_is_refused(value: int) -> None:
    with pytest.raises(UserError, match=r"nonfinite\.stop_after is .*at least 1, or null"):
        NonFiniteGradients(value)


def test_the_command_ends_with_one_line_and_goes_on_from_what_it_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    shards, runs = toy.shards(tmp_path), tmp_path / "runs"
    poison = ["--trainer.callbacks=test_nonfinite.Poison", "--trainer.callbacks.steps=[2,3]"]
    argv = arguments(shards, runs, "--nonfinite.stop_after=2", "--trainer.logger=true", steps=6)
    with pytest.warns(UserWarning, match="step 3 is skipped"):
        line = refusal(["fit", *argv, *poison], capsys)
    assert line.startswith("stopped at step 4: non-finite gradients in 2 steps in a row, from step 3 on, first in dec")
    (run,) = (runs / "quickstart").iterdir()
    assert [file.name for file in (run / "checkpoints").iterdir()] == ["step-00000004.ckpt"]
    assert main(["fit", *argv, "--ckpt_path=last"]) == 0
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    skipped = {r["step"]: r["metrics"]["train/skipped_steps"] for r in records if "train/skipped_steps" in str(r)}
    assert skipped == {3: 1.0, 4: 2.0}
    assert (run / "checkpoints" / "step-00000006.ckpt").is_file()


def test_one_bad_number_in_the_shard_of_one_process_skips_the_step_on_all() -> None:
    results, port = FORK.Queue(), free_port()
    ranks = [FORK.Process(target=shard_decides, args=(rank, port, results)) for rank in range(2)]
    try:
        for process in ranks:
            process.start()
        found = [results.get(timeout=60) for _ in ranks]
    finally:
        for process in ranks:
            process.join(20)
            process.kill()
    assert found[0] == found[1]
    decisions, stop = found[0]
    assert decisions == [False, True, True]
    assert "from step 1 on, first in 0.weight;" in stop
