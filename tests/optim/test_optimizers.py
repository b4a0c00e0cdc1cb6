"""The contract of every optimizer in `lrtrain.optim`: closures, hooks, missing gradients, exact resume."""

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lrtrain.optim import (
    CombinedOptimizer,
    Spectron,
    WarmupCosine,
    WarmupStableDecay,
)
from optim_classes import classes
from quadratic import Named, closure_of, matrices, quadratic, through_a_file


def make(cls: type, named: Named) -> Optimizer:
    if cls is CombinedOptimizer:
        return cls([Spectron(named[:2], lr=0.1), AdamW(named[2:], lr=0.01)])
    return cls(named, lr=0.1)


every_optimizer = pytest.mark.parametrize("cls", classes(Optimizer))


def test_the_optimizers_and_schedules_of_the_library_are_found() -> None:
    assert {Spectron, CombinedOptimizer} <= set(classes(Optimizer))
    assert {WarmupCosine, WarmupStableDecay} <= set(classes(LRScheduler))


@every_optimizer
def test_the_closure_runs_once_with_gradients_and_its_loss_comes_back(cls: type) -> None:
    named = matrices()
    optimizer = make(cls, named)
    closure, losses = closure_of(optimizer, named), []

    def counted() -> Tensor:
        losses.append(closure())
        return losses[-1]

    before = quadratic(named).item()
    with torch.no_grad():
        returned = optimizer.step(counted)
    assert len(losses) == 1
    assert returned is losses[0]
    assert quadratic(named).item() < before


@every_optimizer
def test_the_learning_rate_is_read_after_the_closure(cls: type) -> None:
    named = matrices()
    kept = [p.detach().clone() for _, p in named]
    optimizer = make(cls, named)
    closure = closure_of(optimizer, named)

    def stops() -> Tensor:
        loss = closure()
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        return loss

    optimizer.step(stops)
    assert all(torch.equal(p, old) for (_, p), old in zip(named, kept, strict=True))


@every_optimizer
def test_a_post_hook_fires_once_a_step(cls: type) -> None:
    named, fired = matrices(), []
    optimizer = make(cls, named)
    optimizer.register_step_post_hook(lambda *_: fired.append(1))
    for count in (1, 2):
        optimizer.step(closure_of(optimizer, named))
        assert len(fired) == count


@every_optimizer
def test_parameters_without_a_gradient_stay_where_they_are(cls: type) -> None:
    named = matrices()
    optimizer = make(cls, named)
    kept = named[1][1].detach().clone()
    for _ in range(3):
        optimizer.step(closure_of(optimizer, [named[0], *named[2:]]))
    assert torch.equal(named[1][1], kept)


@every_optimizer
def test_a_saved_state_continues_bit_for_bit(cls: type) -> None:
    named = matrices()
    optimizer = make(cls, named)
    for _ in range(3):
        optimizer.step(closure_of(optimizer, named))
    saved = through_a_file({"weights": [p.detach() for _, p in named], "optimizer": optimizer.state_dict()})
    other = [(name, nn.Parameter(weight.clone())) for (name, _), weight in zip(named, saved["weights"], strict=True)]
    resumed = make(cls, other)
    resumed.load_state_dict(saved["optimizer"])
    for _ in range(3):
        optimizer.step(closure_of(optimizer, named))
        resumed.step(closure_of(resumed, other))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(named, other, strict=True))
