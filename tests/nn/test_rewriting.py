"""A weight as factors: the best approximation at a rank or a share of the energy, against an SVD in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrtrain.nn import DenseLinear, LowRankLinear, SpectralLinear
from lrtrain.nn.rewriting import as_factors, write_weight

OUT, IN = 40, 28


def made(kind: str) -> Any:
    """A weight of shape (40, 28), or a projection that has one, of rank 28 or 12, with decaying singular values."""
    torch.manual_seed(0)
    p, q = (torch.linalg.qr(torch.randn(n, IN)).Q for n in (OUT, IN))
    weight = (p * 0.8 ** torch.arange(IN)) @ q.mT
    if kind in ("weight", "half"):
        return weight.to(torch.bfloat16 if kind == "half" else torch.float32)
    if kind == "dense":
        layer: Any = DenseLinear(IN, OUT)
        write_weight(layer, as_factors(weight, LowRankLinear, rank=IN)[0])
        return layer
    return as_factors(weight, LowRankLinear if kind == "low-rank" else SpectralLinear, rank=12)[0]


@pytest.mark.parametrize("size", [{"rank": 1}, {"rank": 7}, {"energy": 0.5}, {"energy": 0.99}, {"energy": 1.0}])
@pytest.mark.parametrize("goal", [LowRankLinear, SpectralLinear])
@pytest.mark.parametrize("kind", ["weight", "half", "dense", "low-rank", "spectral"])
def test_factors_are_those_of_a_decomposition_in_float64(kind: str, goal: Any, size: dict[str, Any]) -> None:
    source = made(kind)
    weight = (source if isinstance(source, Tensor) else source.materialize()).detach().double()
    p, sigma, q = torch.linalg.svd(weight, full_matrices=False)
    shares = (sigma**2).cumsum(0) / (sigma**2).sum()
    most = 12 if kind in ("low-rank", "spectral") else IN
    rank = size.get("rank") or min(int((shares < size["energy"] - 1e-12).sum()) + 1, most)
    layer, kept = as_factors(source, goal, **size)
    assert layer.rank == kept.rank == rank
    assert kept.energy == pytest.approx(float(shares[rank - 1]), abs=1e-6)
    best = (p[:, :rank] * sigma[:rank]) @ q[:rank]
    torch.testing.assert_close(layer.materialize().double(), best, rtol=0, atol=2e-6)


def test_the_dtype_is_what_is_asked_for() -> None:
    weight = torch.randn(OUT, IN, dtype=torch.float64)
    layer, _ = as_factors(weight, LowRankLinear, rank=IN, dtype=torch.float64)
    torch.testing.assert_close(layer.materialize(), weight, rtol=0, atol=1e-12)


class Doubled(nn.Module):
    """A dense map with a number beside its weight."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.randn(out_features, in_features))

    def forward(self, x: Tensor) -> Tensor:
        return 2 * F.linear(x, self.weight)


class DoubledFactors(LowRankLinear):
    """The same with factors, which do not tell of it."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("source", [Doubled(IN, OUT), DoubledFactors(IN, OUT, rank=12)], ids=["dense", "factors"])
def test_a_projection_that_computes_something_else_than_its_weight_is_refused(source: Any) -> None:
    line = rf"test_rewriting\.{type(source).__name__} computes something else than its weight says"
    with pytest.raises(ValueError, match=line):
        as_factors(source, LowRankLinear, rank=4)
    with pytest.raises(ValueError, match=line):
        write_weight(DenseLinear(IN, OUT), source)
    with pytest.raises(ValueError, match=line):
        write_weight(source, made("low-rank"))


def test_a_class_that_states_its_weight_is_taken_at_its_word() -> None:
    class Stated(Doubled):
        def materialize(self) -> Tensor:
            return 2 * self.weight

    source, x = Stated(IN, OUT), torch.randn(3, IN)
    for goal in (as_factors(source, SpectralLinear, rank=IN)[0], DenseLinear(IN, OUT)):
        if isinstance(goal, DenseLinear):
            write_weight(goal, source)
        torch.testing.assert_close(goal(x), source(x), rtol=1e-4, atol=1e-4)
