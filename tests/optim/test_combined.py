"""Several optimizers as one: the same steps, a checkpoint matched by name, groups that schedulers see."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from lrtrain.optim import (
    CombinedOptimizer,
    Spectron,
)
from quadratic import Named, matrices, quadratic, through_a_file, train


def three_parts(named: Named, lr: float = 0.05) -> list[Optimizer]:
    return [Spectron(named[:2], lr=lr), Muon(named[2:3], lr=lr / 2), AdamW(named[3:], lr=lr / 10, weight_decay=0.1)]


def test_the_parts_together_do_what_they_do_alone() -> None:
    together, alone = matrices(), matrices()
    train(CombinedOptimizer(three_parts(together)), together, 3)
    parts = three_parts(alone)
    for _ in range(3):
        for part in parts:
            part.zero_grad()
        quadratic(alone).backward()
        for part in parts:
            part.step()
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(together, alone, strict=True))


def test_a_checkpoint_is_matched_by_name_whatever_the_order_of_parts_and_parameters() -> None:
    named = matrices()
    optimizer = CombinedOptimizer(three_parts(named))
    train(optimizer, named, 3)
    saved = through_a_file(optimizer.state_dict())

    other = [(name, nn.Parameter(p.detach().clone())) for name, p in named]
    spectron, muon, adamw = three_parts([other[1], other[0], *other[2:]])
    resumed = CombinedOptimizer([adamw, spectron, muon])
    resumed.load_state_dict(saved)
    for (name, p), (_, q) in zip(named, other, strict=True):
        mine, theirs = optimizer.state[p], resumed.state[q]
        assert mine.keys() == theirs.keys(), name
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), name
    train(optimizer, named, 3)
    train(resumed, other, 3)
    assert all(torch.equal(p, q) for (_, p), (_, q) in zip(named, other, strict=True))


def test_group_values_of_the_new_configuration_win_over_the_checkpoints() -> None:
    named = matrices()
    optimizer = CombinedOptimizer(three_parts(named))
    train(optimizer, named, 1)
    other = matrices()
    resumed = CombinedOptimizer(
        [
            Spectron(other[:2], lr=0.5, momentum=0.3),
            Muon(other[2:3], lr=0.7),
            AdamW(other[3:], lr=0.9, betas=(0.1, 0.2)),
        ]
    )
    resumed.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in resumed.param_groups] == [0.5, 0.7, 0.9]
    assert resumed.param_groups[0]["momentum"] == 0.3
    assert resumed.param_groups[2]["betas"] == (0.1, 0.2)
    assert resumed.param_groups[2]["weight_decay"] == 0.01
    assert resumed.state[other[0][1]].keys() == {"momentum"}


def test_a_checkpoint_of_another_optimizer_is_refused_and_nothing_is_changed() -> None:
    named = matrices()
    optimizer = CombinedOptimizer(three_parts(named))
    train(optimizer, named, 1)
    saved, other = optimizer.state_dict(), matrices()
    changed = CombinedOptimizer([AdamW(other[:2]), Muon(other[2:3]), AdamW(other[3:])])
    with pytest.raises(ValueError, match="optimizer for p0 is Spectron, the configuration's is AdamW"):
        changed.load_state_dict(saved)
    assert not changed.state


def test_a_checkpoint_of_other_parameters_is_refused() -> None:
    named = matrices()
    optimizer = CombinedOptimizer(three_parts(named))
    train(optimizer, named, 1)
    saved = optimizer.state_dict()
    more = matrices((8, 3), (6, 3), (8, 3), (5, 2), (4, 2))
    with pytest.raises(ValueError, match="no optimizer state for the parameter p4"):
        CombinedOptimizer(three_parts(more)).load_state_dict(saved)
    fewer = matrices()
    with pytest.raises(ValueError, match="unknown parameter, p3"):
        CombinedOptimizer([Spectron(fewer[:2]), Muon(fewer[2:3])]).load_state_dict(saved)


def test_parts_without_parameter_names_and_shared_parameters_are_refused() -> None:
    named = matrices()
    with pytest.raises(ValueError, match="Spectron: build it from"):
        CombinedOptimizer([Spectron([p for _, p in named])])
    with pytest.raises(ValueError, match="more than one parameter group"):
        CombinedOptimizer([Spectron(named[:2]), AdamW(named[1:])])


def test_schedulers_and_clipping_see_the_groups_that_the_parts_step_with() -> None:
    named = matrices()
    parts = three_parts(named)
    optimizer = CombinedOptimizer(parts)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    assert [g["lr"] for part in parts for g in part.param_groups] == [0.0] * 3
    assert [id(g) for part in parts for g in part.param_groups] == [id(g) for g in optimizer.param_groups]
    assert all(part.state is optimizer.state for part in parts)
    kept = [p.detach().clone() for _, p in named]
    train(optimizer, named, 1)
    assert all(torch.equal(p, old) for (_, p), old in zip(named, kept, strict=True))


def test_zero_grad_reaches_every_part() -> None:
    named = matrices()
    optimizer = CombinedOptimizer(three_parts(named))
    quadratic(named).backward()
    optimizer.zero_grad()
    assert all(p.grad is None for _, p in named)
