"""What a constrained run leaves behind: checkpoints that continue bit for bit, and exact measurements."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.optim import Optimizer
from torch.utils.data import DataLoader

import reference
from lrtrain.nn import LowRankLinear
from lrtrain.training.callbacks.spectral_telemetry import SpectralTelemetry
from observers import Observer, ObservingLogger, products
from spectral_runs import ACCUMULATE, STEPS, batches, every_kind, every_step, language_model, trainer


@every_kind
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(kind: str, tmp_path: Path) -> None:
    whole = language_model(kind)
    data = DataLoader(torch.arange(9).expand(4 * STEPS * ACCUMULATE, 9) * 5, batch_size=4)  # type: ignore[arg-type]
    trainer(tmp_path, [every_step(tmp_path)]).fit(whole, data)
    resumed = language_model(kind)
    trainer(tmp_path, [every_step(tmp_path / "again")]).fit(resumed, data, ckpt_path=tmp_path / "step=3.ckpt")
    final = dict(resumed.named_parameters())
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, final[name]), name


def test_the_power_iterations_vectors_are_in_the_checkpoint(tmp_path: Path) -> None:
    model = language_model("low-rank")
    trainer(tmp_path, [every_step(tmp_path)]).fit(model, batches())
    states = torch.load(tmp_path / "step=3.ckpt", weights_only=True)["callbacks"]
    (state,) = (state for name, state in states.items() if "SpectralConstraints" in name)
    names = {f"{name}.{side}" for name in products(model) for side in "AB"}
    assert state["SpectralRenormalization"]["vectors"].keys() == names
    assert all(float(v.norm()) == pytest.approx(1) for v in state["SpectralRenormalization"]["vectors"].values())


def test_the_logged_norms_are_the_exact_ones(tmp_path: Path) -> None:
    model, observer = language_model("mixed"), Observer()  # eight pairs, in the attention
    logger = ObservingLogger(model)
    callback = SpectralTelemetry(["*.attention.*"], every_n_steps=1)
    trainer(tmp_path, [callback, observer], logger=logger, limit_val_batches=0).fit(model, batches())
    points = [metrics for _, metrics in logger.points if "spectral/update_over_lr" in metrics]
    assert len(points) == STEPS
    pairs = len(products(model))
    for index, point in enumerate(points):
        largest = max(observer.ratios[index * pairs : (index + 1) * pairs])
        assert point["spectral/update_over_lr"] == pytest.approx(largest, rel=1e-3)
    layers = [m for m in model.modules() if isinstance(m, LowRankLinear)]
    assert points[-1]["spectral/sigma_A"] == pytest.approx(max(reference.norm(m.A) for m in layers), rel=1e-5)
    assert points[-1]["spectral/sigma_B"] == pytest.approx(max(reference.norm(m.B) for m in layers), rel=1e-5)


def test_what_is_logged_was_measured_in_the_very_step(tmp_path: Path) -> None:
    class GradientNorms(L.Callback):
        seen: tuple[float, ...] = ()

        def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
            norm = torch.nn.utils.get_total_norm([p.grad for p in pl_module.parameters()])
            self.seen = (*self.seen, float(norm))

    model, observer, gradients = language_model("mixed"), Observer(), GradientNorms()
    logger = ObservingLogger(model)
    callbacks = [SpectralTelemetry(["*.attention.*"], every_n_steps=3), observer, gradients]
    run = trainer(tmp_path, callbacks, logger=logger, log_every_n_steps=3, limit_val_batches=0)
    run.fit(model, batches())
    pairs = len(products(model))
    points: dict[int, dict[str, float]] = {}
    for step, metrics in logger.points:
        points.setdefault(step, {}).update(metrics)
    assert [step for step, metrics in points.items() if "spectral/update_over_lr" in metrics] == [3, 6]
    for step in (3, 6):
        metrics = points[step]
        assert metrics["train/gradient_norm"] == pytest.approx(gradients.seen[step - 1], rel=1e-5)
        largest = max(observer.ratios[(step - 1) * pairs : step * pairs])
        assert metrics["spectral/update_over_lr"] == pytest.approx(largest, rel=1e-3)
