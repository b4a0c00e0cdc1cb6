"""The search of the learning rate, and the dense decoders that equal another in size, of benchmarks/sct_table.py."""

import math
from pathlib import Path

import pytest
from benchmarks.sct_table import CONFIGS, DIVERGED, SCALES, VARIANTS, Runs, search


@pytest.mark.parametrize(("best", "runs"), [(0.02, 3), (0.08, 5), (0.0025, 5)])
def test_the_search_goes_on_until_the_best_rate_is_not_at_an_end(best: float, runs: int) -> None:
    found = search(0.02, lambda lr: abs(math.log2(lr / best)))
    assert len(found) == runs
    assert min(found, key=lambda lr: found[lr]) == pytest.approx(best)
    assert min(found) < best < max(found)


def test_a_search_where_every_run_diverges_ends() -> None:
    assert search(0.02, lambda lr: DIVERGED) == {0.02: DIVERGED}


@pytest.mark.parametrize("scale", SCALES)
def test_the_dense_decoders_equal_the_spectral_one(scale: str) -> None:
    runs = Runs(scale, SCALES[scale], 1, Path())
    like, equal = runs.decoder("bounded"), {name: runs.decoder(f"dense_{name}") for name in ("parameters", "flops")}
    counts = [sum(p.numel() for p in decoder.parameters()) for decoder in (like, equal["parameters"])]
    flops = [decoder.flops_per_token(256) for decoder in (like, equal["flops"])]
    assert counts[1] == pytest.approx(counts[0], rel=0.005)
    assert flops[1] == pytest.approx(flops[0], rel=0.005)


def test_the_overlays_of_all_variants_are_shipped() -> None:
    for variant in VARIANTS.values():
        assert all((CONFIGS / "ablation" / f"{overlay}.yaml").is_file() for overlay in variant.overlays)
