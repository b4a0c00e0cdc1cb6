"""Projections that are plain modules: found, counted and trained as those of the package are."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lrtrain.nn import Decoder, DenseLinear, LowRankLinear, SelfGuidedLinear, projections
from lrtrain.nn.projection import before_load, deleted_parameters, hidden_parameters
from own_modules import CoLA, Narrow, Nested, Reading, Scale

NAMES = [f"attention.{part}" for part in ("query", "key", "value", "output")] + [
    f"mlp.{p}" for p in ("gate", "up", "down")
]


def decoder(attention: Any, mlp: Any = None) -> Decoder:
    return Decoder(50, 32, 2, 2, 48, attention, mlp or attention)


@pytest.mark.parametrize("linear", [CoLA, Nested, partial(nn.Linear, bias=False), LowRankLinear])
def test_what_attention_and_mlp_make_are_the_projections_and_no_part_of_one_is(linear: Any) -> None:
    model = decoder(partial(LowRankLinear, rank=4) if linear is LowRankLinear else linear)
    assert list(projections(model)) == [f"blocks.{index}.{name}" for index in (0, 1) for name in NAMES]
    hidden = hidden_parameters(model)
    others = {name for name, _ in model.named_parameters()} - hidden
    assert others == {
        "embedding.weight",
        "head.weight",
        "norm.weight",
        *(f"blocks.{index}.{norm}.weight" for index in (0, 1) for norm in ("attention_norm", "mlp_norm")),
    }


@pytest.mark.parametrize("linear", [CoLA, Nested, partial(nn.Linear, bias=False)])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_flops_that_a_module_does_not_state_are_counted(linear: Any, device: str) -> None:
    with torch.device(device):
        model = decoder(linear, partial(LowRankLinear, rank=4))
        tokens = torch.zeros(1, 16, dtype=torch.int64)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.logits(model(tokens))
    assert counter.get_total_flops() == 16 * model.flops_per_token(16)


def test_flops_that_a_module_states_stand() -> None:
    class Stating(Scale):
        flops_per_token = 7

    assert decoder(Stating).flops_per_token(16) == 14 * 7 + 2 * 50 * 32 + 4 * 16 * 32 * 2


def test_counting_draws_nothing_and_leaves_the_module_as_it_was() -> None:
    torch.manual_seed(0)
    plain = CoLA(32, 48)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    model = Decoder(50, 32, 1, 2, 48, lambda a, b: DenseLinear(a, b), CoLA)
    torch.manual_seed(0)
    again = Decoder(50, 32, 1, 2, 48, lambda a, b: DenseLinear(a, b), CoLA)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    torch.manual_seed(0)
    CoLA(32, 48)
    assert torch.equal(torch.rand(1), drawn)
    assert model.blocks[0].mlp.gate.state_dict().keys() == plain.state_dict().keys()


def test_the_dense_equivalent_has_a_matrix_for_each_projection() -> None:
    expected = decoder(DenseLinear).dense_equivalent()
    for linear in (CoLA, Nested, partial(LowRankLinear, rank=4)):
        assert decoder(linear).dense_equivalent() == expected


@pytest.mark.parametrize(
    ("linear", "message"),
    [
        (Narrow, r"own_modules.Narrow makes \(1, 1, 31\) of \(1, 1, 32\): expected \(1, 1, 32\)"),
        (Reading, r"the FLOPs of own_modules.Reading cannot be counted .*: state flops_per_token"),
        (Scale, r"own_modules.Scale has no matrix product .*: state flops_per_token"),
        (nn.ReLU, r"a projection is made of \(in_features, out_features\)"),
        (lambda a, b: a, "builtins.int is no torch.nn.Module"),
    ],
)
def test_what_is_no_projection_is_refused(linear: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoder(linear)


def test_a_hook_of_a_projection_inside_a_plain_module_is_asked() -> None:
    class Around(nn.Module):
        def __init__(self, in_features: int, out_features: int) -> None:
            super().__init__()
            self.inner = SelfGuidedLinear(in_features, out_features, rank=4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).tanh()

    model = decoder(Around, DenseLinear)
    saved = [name for name in model.state_dict() if not name.endswith((".W", ".alpha"))]
    before_load(model, saved)
    assert list(model.state_dict()) == saved
    assert len(deleted_parameters(model)) == 8
    assert "blocks.0.attention.query.inner.W" in deleted_parameters(model)
