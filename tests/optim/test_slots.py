"""Which optimizer a parameter gets: the slots, the overrides, and the table that shows them."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Muon

from lrtrain.optim import (
    Optimizers,
    Spectron,
    WarmupCosine,
    build_optimizer,
    coverage,
)


def parameters() -> dict[str, Tensor]:
    shapes = {"embedding.weight": (7, 4), "blocks.0.up.A": (6, 2), "blocks.0.up.B": (4, 2), "blocks.0.up.s": (2,)}
    return {name: nn.Parameter(torch.ones(shape)) for name, shape in {**shapes, "norm.weight": (4,)}.items()}


HIDDEN = {"blocks.0.up.A", "blocks.0.up.B", "blocks.0.up.s"}


def test_every_parameter_has_exactly_one_optimizer() -> None:
    named = parameters()
    combined, slots = build_optimizer(named, HIDDEN, Optimizers(partial(SGD, lr=0.1), partial(AdamW, lr=0.2)))
    assert {slot.pattern: set(slot.names) for slot in slots} == {
        "hidden": HIDDEN,
        "other": {"embedding.weight", "norm.weight"},
    }
    held = [id(p) for group in combined.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in named.values())
    assert [type(part) for part in combined.optimizers] == [SGD, AdamW]


def test_the_first_override_that_matches_wins_over_later_ones_and_over_the_slots() -> None:
    overrides = {"*.s": partial(SGD, lr=0.3), "blocks.*": partial(Muon, lr=0.4), "norm.*": partial(SGD, lr=0.5)}
    optimizers = Optimizers(partial(SGD, lr=0.1), partial(AdamW, lr=0.2), overrides)
    _, slots = build_optimizer(parameters(), HIDDEN, optimizers)
    assert {slot.pattern: slot.names for slot in slots} == {
        "*.s": ["blocks.0.up.s"],
        "blocks.*": ["blocks.0.up.A", "blocks.0.up.B"],
        "norm.*": ["norm.weight"],
        "other": ["embedding.weight"],
    }
    assert [slot.optimizer.param_groups[0]["lr"] for slot in slots] == [0.3, 0.4, 0.5, 0.2]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["blocks.1.*"], "'blocks.1.*' matches no parameter"),
        (["blocks.*", "*.A"], "'*.A' matches no parameter that is still free"),
        (["hidden"], "'hidden' is a slot"),
        (["other"], "'other' is a slot"),
    ],
)
def test_an_override_that_does_nothing_is_refused(patterns: list[str], message: str) -> None:
    optimizers = Optimizers(SGD, AdamW, dict.fromkeys(patterns, AdamW))
    with pytest.raises(ValueError) as error:  # noqa: PT011
        build_optimizer(parameters(), HIDDEN, optimizers)
    assert message in str(error.value)


def test_an_optimizer_that_refuses_its_parameters_says_so() -> None:
    with pytest.raises(ValueError, match=r"blocks\.0\.up\.s has the shape \(2,\)"):
        build_optimizer(parameters(), HIDDEN, Optimizers(Spectron, AdamW))


def test_the_coverage_table_has_a_line_for_each_slot() -> None:
    optimizers = Optimizers(partial(SGD, lr=0.1), partial(AdamW, lr=2e-3, weight_decay=0.1), {"*.s": AdamW})
    optimizer, slots = build_optimizer(parameters(), HIDDEN, optimizers)
    WarmupCosine(optimizer, 100)  # the table shows the base rates, not the first step's
    assert coverage(slots) == [
        ["pattern", "parameters", "count", "optimizer", "lr", "weight decay"],
        ["*.s", "1", "2", "AdamW", "0.001", "0.01"],
        ["hidden", "2", "20", "SGD", "0.1", "0"],
        ["other", "2", "32", "AdamW", "0.002", "0.1"],
    ]
    _, slots = build_optimizer(parameters(), HIDDEN, Optimizers(SGD, AdamW, {"blocks.*": SGD}))
    assert ["hidden", "0", "0", "none: overrides have all", "", ""] in coverage(slots)
