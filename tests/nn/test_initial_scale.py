"""The initial scale of a decoder's projections: one rule for every way to write them."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from lrtrain.nn import Decoder, DenseLinear, LowRankLinear, SelfGuidedLinear, SpectralLinear
from lrtrain.nn.projection import LinearCallable, projections

WIDTH, DEPTH = 64, 2
KINDS: dict[str, LinearCallable] = {
    "dense": DenseLinear,
    "low-rank": partial(LowRankLinear, rank_ratio=1.0),
    "spectral": partial(SpectralLinear, rank_ratio=1.0),
    "self-guided": partial(SelfGuidedLinear, rank_ratio=1.0),
}


def decoder(linear: LinearCallable, **more: Any) -> Decoder:
    torch.manual_seed(0)
    return Decoder(50, WIDTH, DEPTH, heads=2, ffn_width=96, attention=linear, mlp=linear, **more)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", ["width", "gpt2", 0.3])
def test_every_way_to_write_a_weight_begins_at_the_scale_of_the_rule(kind: str, scale: Any) -> None:
    found = projections(decoder(KINDS[kind], initial_scale=scale))
    for (name, one), plain in zip(found.items(), projections(decoder(KINDS[kind])).values(), strict=True):
        residual = name.endswith(("attention.output", "mlp.down"))
        expected = {"width": 2**0.5 / WIDTH, "gpt2": 0.02 / (2 * DEPTH) ** 0.5 if residual else 0.02, 0.3: 0.3}[scale]
        weight = one.materialize()
        assert float(weight.detach().std()) == pytest.approx(expected, rel=0.1)
        torch.testing.assert_close(weight, plain.materialize() * expected * one.in_features**0.5)
    if kind == "self-guided":
        assert all(torch.allclose(one.W, one.A @ one.B.mT, atol=1e-6) for one in found.values())


def test_fan_in_is_the_draw_itself() -> None:
    one, other = decoder(DenseLinear), decoder(DenseLinear, initial_scale="fan_in")
    assert all(torch.equal(x, y) for x, y in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("linear", "scale", "why"),
    [
        (DenseLinear, "xavier", "initial_scale must be fan_in, width, gpt2 or a positive number, got xavier"),
        (DenseLinear, 0.0, "a positive number, got 0"),
        (DenseLinear, float("nan"), "a positive number, got nan"),
        (partial(DenseLinear, std=0.1), "width", r"blocks\.0\.attention\.query has an initial scale of its own"),
        (partial(SpectralLinear, rank=4, init="paper"), 0.02, "has an initial scale of its own"),
    ],
)
def test_what_has_its_own_scale_is_refused(linear: LinearCallable, scale: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decoder(linear, initial_scale=scale)


def test_a_class_that_cannot_be_scaled_is_left_as_it_draws_itself_with_a_word() -> None:
    linear = partial(nn.Linear, bias=False)
    with pytest.warns(UserWarning, match=r"14 projections .*, Linear \(blocks\.0\.attention\.query\) first: .* scale_"):
        one = decoder(linear, initial_scale="gpt2")
    assert all(torch.equal(x, y) for x, y in zip(one.parameters(), decoder(linear).parameters(), strict=True))
