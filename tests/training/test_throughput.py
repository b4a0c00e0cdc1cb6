"""Running totals of tokens, FLOPs and time."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml

import toy
from commandline import arguments
from lrtrain.cli.main import main
from lrtrain.config.trained_model import build_decoder
from lrtrain.training.callbacks import throughput
from lrtrain.training.callbacks.throughput import TOTALS, Throughput, peak_flops

TOKENS = 4 * toy.BLOCK


def totals(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Every total that a run logged, as (step, value)."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    points = [(r["step"], r["metrics"]) for r in records if "metrics" in r]
    return {
        name: [(step, metrics[f"throughput/{name}"]) for step, metrics in points if f"throughput/{name}" in metrics]
        for name in TOTALS
    }


def test_totals_reach_to_the_end_and_go_on_after_a_resume(tmp_path: Path) -> None:
    more = ["--trainer.logger=true", "--trainer.log_every_n_steps=2", "--name=x"]
    fit = ["fit", *arguments(toy.shards(tmp_path), tmp_path / "runs", *more)]
    assert main([*fit, "--trainer.max_steps=3"]) == 0
    run = tmp_path / "runs/x/0001"
    first = totals(run)
    assert first["tokens_seen"] == [(2, 2 * TOKENS), (3, 3 * TOKENS)]
    decoder = build_decoder(yaml.safe_load((run / "config.yaml").read_text())["model"]["decoder"])
    assert first["flops"][-1][1] == pytest.approx(3 * TOKENS * 3 * decoder.flops_per_token(toy.BLOCK))
    seconds, inside, validation = (first[name][-1][1] for name in ("seconds", "step_seconds", "validation_seconds"))
    assert 0 < inside < seconds
    assert validation > 0

    assert main([*fit, "--trainer.max_steps=5", "--ckpt_path=last"]) == 0
    second = totals(run)
    assert second["tokens_seen"] == [*first["tokens_seen"], (4, 4 * TOKENS), (5, 5 * TOKENS)]
    # The closing validation of the first part came after its checkpoint.
    assert all(second[name][-1][1] > first[name][-1][1] for name in TOTALS if name != "validation_seconds")


def test_a_total_that_an_older_checkpoint_does_not_hold_is_not_made_up() -> None:
    throughput = Throughput()
    throughput.load_state_dict({"tokens_seen": 7})
    assert throughput.tokens_seen == 7
    assert math.isnan(throughput.flops)
    assert throughput._totals() == {"throughput/tokens_seen": 7.0}


def test_measuring_the_peak_draws_no_random_number_of_the_run() -> None:
    before = torch.get_rng_state()
    assert peak_flops.__wrapped__(torch.device("cpu"), torch.float32) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_the_peak_of_a_processor_that_emulates_a_dtype_is_that_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {torch.float32: 5e10, torch.bfloat16: 6e8}
    measured: list[tuple[int, torch.dtype]] = []

    def rate(size: int, dtype: torch.dtype) -> float:
        measured.append((size, dtype))
        return rates[dtype]

    monkeypatch.setattr(throughput, "product_rate", rate)
    peak = peak_flops.__wrapped__
    assert peak(torch.device("cpu"), torch.bfloat16) == 5e10
    assert (1024, torch.bfloat16) not in measured, "hundreds of times slower: seconds for each"
    rates[torch.bfloat16] = 2e11
    assert peak(torch.device("cpu"), torch.bfloat16) == 2e11
    assert peak(torch.device("cpu"), torch.float32) == 5e10
