"""Planned memory against that of real training steps on this machine."""

import os
import subprocess
import sys

import pytest
import torch

import planned_steps
from lrtrain.studies.plan.live_bytes import LiveBytes
from planned_steps import KINDS, MEASURED, ONE_DEVICE, TOY


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("kind", [*KINDS, "unlike"])
def test_the_planned_peak_is_that_of_the_live_tensors(kind: str, recompute: bool, precision: str) -> None:
    plan = planned_steps.predicted(kind, TOY, recompute, precision)
    measured = planned_steps.live_peak(kind, TOY, recompute, precision)
    assert plan.peak == pytest.approx(measured, rel=0.03)


def test_gradients_that_accumulate_stay_from_one_micro_batch_to_the_next() -> None:
    plan = planned_steps.predicted("spectron", TOY, False, "32-true", accumulates=True)
    measured = planned_steps.live_peak("spectron", TOY, False, "32-true", micro_batches=2)
    assert plan.peak == pytest.approx(measured, rel=0.03)
    assert plan.peak > planned_steps.predicted("spectron", TOY, False, "32-true").peak


def test_a_loss_of_many_chunks_is_planned_from_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("lrtrain.nn.loss", "lrtrain.studies.plan.activations"):
        monkeypatch.setattr(f"{module}.CHUNK_LOGITS", 4096 * 50)  # 512 tokens in 11 chunks
    for precision in planned_steps.COMPUTE:
        plan = planned_steps.predicted("dense", TOY, True, precision)
        assert plan.peak == pytest.approx(planned_steps.live_peak("dense", TOY, True, precision), rel=0.03)


@pytest.fixture(scope="module")
def resident() -> dict[tuple[str, bool], int]:
    """(kind, recompute) -> bytes by which a process grew."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, planned_steps.__file__], check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    rows = [line.split() for line in run.stdout.splitlines()]
    return {(kind, recompute == "True"): int(size) for kind, recompute, size in rows}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_planned_peak_is_that_of_resident_memory(
    kind: str, recompute: bool, resident: dict[tuple[str, bool], int]
) -> None:
    plan = planned_steps.predicted(kind, MEASURED, recompute, "32-true")
    assert plan.peak == pytest.approx(resident[kind, recompute], rel=0.1)


def test_the_largest_micro_batch_fits_and_one_more_does_not() -> None:
    model = planned_steps.memory_model("spectron", TOY, "32-true")
    largest = model.largest(100e6, ONE_DEVICE, False)
    assert model.at(largest, ONE_DEVICE, False).peak <= 100e6 < model.at(largest + 1, ONE_DEVICE, False).peak
    assert model.largest(10e6, ONE_DEVICE, False) == 0


def test_live_bytes_counts_storages_once_and_until_they_are_freed() -> None:
    before = torch.ones(100)
    with LiveBytes() as live:
        before.add_(1)
        made = torch.ones(1000)
        view = made[:10]
        assert live.now == 4000
        del made
        assert live.now == 4000
        del view
        assert live.now == 0
    assert live.peak == 4000
