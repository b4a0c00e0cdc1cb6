"""The telemetry in a Trainer: what is logged, what is tracked, what is resumed, and that training does not notice."""

import json
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

import reference
from commandline import arguments
from lrtrain.cli.main import main
from lrtrain.nn import Projection
from lrtrain.optim import Optimizers
from lrtrain.runtime.errors import UserError
from lrtrain.training.callbacks.spectral_constraints import SpectralConstraints
from lrtrain.training.callbacks.spectral_telemetry import SpectralTelemetry
from lrtrain.training.causal_lm import CausalLM
from observers import ObservingLogger
from spectral_runs import ACCUMULATE, SPECTRON, STEPS, batches, every_kind, every_step, language_model, trainer
from tracked import history


class NotFinite(L.Callback):
    """Spoils the gradient of one step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        if trainer.global_step == self.step:
            optimizer.skip_step = True  # type: ignore[attr-defined]


def layers_of(metrics: dict[str, float]) -> set[str]:
    return {key.split("/")[1] for key in metrics if key.startswith("spectral/") and key.count("/") == 2}


@torch.no_grad()
def inputs_of(model: CausalLM, layers: dict[str, Projection], tokens: Tensor) -> dict[str, Tensor]:
    """What each layer gets when the tokens go through the model in the Trainer's precision."""
    seen: dict[str, Tensor] = {}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, inputs, name=name: seen.__setitem__(name, inputs[0]))
    with torch.autocast("cpu", torch.bfloat16):
        model(tokens)
    return seen


@every_kind
def test_what_a_trainer_logs_is_what_two_following_checkpoints_differ_by(kind: str, tmp_path: Path) -> None:
    model = language_model(kind)
    logger = ObservingLogger(model)
    # Before the constraints in the list, and yet what is measured is the end of the step.
    telemetry = SpectralTelemetry(["*.output", "*.up"], every_n_steps=2)
    callbacks = [NotFinite(3), telemetry, SpectralConstraints(), every_step(tmp_path)]
    trainer(tmp_path, callbacks, logger=logger).fit(model, batches(), batches(1))
    found = {step: metrics for step, metrics in logger.points if layers_of(metrics)}
    assert list(found) == [2, 6]  # every second step, but not the skipped one
    twin = language_model(kind)
    twin.configure_model()
    for step, metrics in found.items():
        weights = []
        for number in (step, step - 1):
            saved = torch.load(tmp_path / f"step={number}.ckpt", weights_only=True)
            twin.load_state_dict(saved["state_dict"])
            modules = {n: m for n, m in twin.named_modules() if isinstance(m, Projection)}
            weights.append({n: m.materialize().detach().clone() for n, m in modules.items()})
        inputs = inputs_of(twin, modules, saved["callbacks"]["SpectralTelemetry"]["probe"])
        names = {name for name in modules if name.endswith((".output", ".up"))}
        assert layers_of(metrics) == names
        for name in names:
            expected = reference.weight_figures(weights[1][name], weights[0][name], 8)
            change = (weights[0][name] - weights[1][name]).double()
            expected["output_change_rms"] = float((inputs[name].double() @ change.mT).square().mean().sqrt())
            logged = {key: metrics[f"spectral/{name}/{key}"] for key in expected}
            assert logged == pytest.approx(expected, rel=1e-3), name
        for key in ("sigma_A", "update_over_lr"):
            values = [metrics[f"spectral/{n}/{key}"] for n in names if f"spectral/{n}/{key}" in metrics]
            assert metrics.get(f"spectral/{key}") == max(values, default=None)
    assert telemetry.measured == found[6]


@every_kind
def test_training_does_not_notice_that_it_is_measured(kind: str, tmp_path: Path) -> None:
    ends, states = [], []
    for every in (0, 1):
        model = language_model(kind)
        trainer(tmp_path, [SpectralTelemetry(every_n_steps=every)]).fit(model, batches(), batches(1))
        ends.append(model.state_dict())
        states.append(torch.get_rng_state())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert torch.equal(*states)


def test_nothing_of_a_step_is_kept_after_it(tmp_path: Path) -> None:
    telemetry = SpectralTelemetry(every_n_steps=1)
    trainer(tmp_path, [NotFinite(STEPS - 1), telemetry]).fit(language_model("mixed"), batches())
    library = telemetry._telemetry
    assert library is not None
    assert [library._before, library._inputs, library._rates] == [{}, {}, {}]


def test_a_resumed_run_logs_what_the_whole_run_does(tmp_path: Path) -> None:
    points = []
    for folder, start in (("whole", None), ("again", tmp_path / "whole/step=3.ckpt")):
        model = language_model("mixed")
        logger = ObservingLogger(model)
        callbacks = [SpectralTelemetry(every_n_steps=1), every_step(tmp_path / folder)]
        data = torch.utils.data.DataLoader(torch.arange(9).expand(4 * STEPS * ACCUMULATE, 9) * 5, batch_size=4)  # type: ignore[arg-type]
        trainer(tmp_path, callbacks, logger=logger).fit(model, data, ckpt_path=start)
        points.append({step: metrics for step, metrics in logger.points if layers_of(metrics)})
    assert list(points[1]) == [4, 5, 6]
    assert all(points[1][step] == points[0][step] for step in points[1])


def test_a_run_tracks_every_layers_figures(prepared: Path, root: Path) -> None:
    callback = [
        "--trainer.callbacks=lrtrain.training.SpectralTelemetry",
        "--trainer.callbacks.every_n_steps=1",
    ]
    assert main(["fit", *arguments(prepared, root, "--trainer.logger=true", *callback)]) == 0
    run = root / "quickstart/0001"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    points = [(r["step"], r["metrics"]) for r in records if layers_of(r.get("metrics", {}))]
    assert [step for step, _ in points] == [1, 2]
    names = {f"decoder.blocks.{i}.attention.output" for i in (0, 1)}
    for _, metrics in points:
        assert layers_of(metrics) == names
        assert {"spectral/sigma_A", "spectral/sigma_B", "spectral/update_over_lr"} < metrics.keys()
    for key, value in points[1][1].items():
        assert history(run, key)[1] == (2, pytest.approx(value, rel=1e-9)), key


def test_the_configurations_own_telemetry_replaces_the_automatic_one(tmp_path: Path) -> None:
    for own in ([], [SpectralTelemetry(["*.up"], every_n_steps=0)]):
        run = trainer(tmp_path, list(own))
        run.fit(language_model("low-rank"), batches())
        attached = [c for c in run.callbacks if isinstance(c, SpectralTelemetry)]  # type: ignore[attr-defined]
        assert len(attached) == 1
        assert not own or attached == own
        assert not attached[0].measured  # six steps are fewer than the default's 25


def test_a_pattern_that_matches_no_projection_is_refused_in_a_line(tmp_path: Path) -> None:
    run = trainer(tmp_path, [SpectralTelemetry(["*.output", "*.outptu"], every_n_steps=1)])
    with pytest.raises(UserError, match=r"SpectralTelemetry\.layers: .*'\*\.outptu' matches no projection.*query") as e:
        run.fit(language_model("low-rank"), batches())
    assert "\n" not in str(e.value)


def test_a_negative_interval_is_refused_in_a_line() -> None:
    with pytest.raises(UserError, match=r"every_n_steps: -1: give at least 1, or 0"):
        SpectralTelemetry(every_n_steps=-1)


def test_other_optimizers_and_dense_weights_are_measured_too(tmp_path: Path) -> None:
    model = language_model("low-rank", Optimizers(SPECTRON, partial(AdamW, lr=0.01), overrides={"*.0.*": AdamW}))
    telemetry = SpectralTelemetry(["*.query"], every_n_steps=STEPS)
    trainer(tmp_path, [telemetry]).fit(model, batches())
    ratios = [telemetry.measured[f"spectral/decoder.blocks.{i}.attention.query/update_over_lr"] for i in (0, 1)]
    assert telemetry.measured["spectral/update_over_lr"] == max(ratios)
    assert ratios[0] > 1.3 >= ratios[1] > 0.1  # AdamW's learning rate bounds nothing
