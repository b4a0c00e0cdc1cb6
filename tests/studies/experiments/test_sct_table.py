"""The dense decoders that equal another in size, of benchmarks/sct_table.py."""

from pathlib import Path

import pytest

from benchmarks.sct_table import CONFIGS, SCALES, VARIANTS, Runs


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
        assert all((CONFIGS / "methods" / f"{overlay}.yaml").is_file() for overlay in variant.overlays)
