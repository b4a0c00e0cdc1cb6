"""The schedules: their curves, no idle step, exact resume, and what they refuse."""

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lrtrain.optim import (
    CombinedOptimizer,
    Spectron,
    WarmupCosine,
    WarmupStableDecay,
)
from optim_classes import classes
from quadratic import matrices, through_a_file

every_schedule = pytest.mark.parametrize("cls", classes(LRScheduler))


def optimizer_with(lr: float = 2.0) -> Optimizer:
    return SGD([nn.Parameter(torch.ones(1))], lr=lr)


def rates(schedule: LRScheduler, steps: int) -> list[float]:
    """The rates of the next `steps` steps."""
    seen = []
    for _ in range(steps):
        seen.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return seen


def test_warmup_cosine_rises_to_the_base_rate_and_falls_as_half_a_cosine() -> None:
    schedule = WarmupCosine(optimizer_with(), 100, warmup=0.1, final=0.25)
    seen = rates(schedule, 100)
    assert seen[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    expected = [2 * (0.25 + 0.75 * 0.5 * (1 + math.cos(math.pi * i / 90))) for i in range(90)]
    assert seen[10:] == pytest.approx(expected)
    assert schedule.get_last_lr() == pytest.approx([0.5])


def test_warmup_stable_decay_rises_holds_and_falls_in_a_line() -> None:
    schedule = WarmupStableDecay(optimizer_with(), 100, warmup=0.1, decay=0.2, final=0.5)
    seen = rates(schedule, 100)
    assert seen[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert seen[10:80] == [2.0] * 70
    assert seen[80:] == pytest.approx([2 * (1 - 0.5 * i / 20) for i in range(20)])
    assert schedule.get_last_lr() == pytest.approx([1.0])


@every_schedule
@pytest.mark.parametrize("total", [1, 2, 3, 19, 1000])
def test_no_step_of_a_run_has_rate_zero_or_more_than_the_base_rate(cls: type, total: int) -> None:
    assert all(0 < rate <= 2 for rate in rates(cls(optimizer_with(), total), total))


@every_schedule
@pytest.mark.parametrize("position", [0, 1, 3, 10, 30, 49])
def test_a_resumed_schedule_goes_on_at_its_exact_position(cls: type, position: int) -> None:
    whole = rates(cls(optimizer_with(), 50, warmup=0.1), 50)
    first = cls(optimizer_with(), 50, warmup=0.1)
    rates(first, position)
    resumed = cls(optimizer_with(), 50, warmup=0.1)
    resumed.load_state_dict(through_a_file(first.state_dict()))
    assert resumed.get_last_lr() == first.get_last_lr()
    assert rates(resumed, 50 - position) == whole[position:]


@every_schedule
def test_a_schedule_resumed_with_another_length_and_rate_follows_the_new_ones(cls: type) -> None:
    first = cls(optimizer_with(), 50)
    rates(first, 30)
    resumed = cls(optimizer_with(lr=3.0), 200)
    resumed.load_state_dict(first.state_dict())
    assert rates(resumed, 170) == rates(cls(optimizer_with(lr=3.0), 200), 200)[30:]


@every_schedule
def test_every_group_keeps_its_share(cls: type) -> None:
    named = matrices()
    schedule = cls(CombinedOptimizer([Spectron(named[:2], lr=0.5), AdamW(named[2:], lr=0.01)]), 20)
    for _ in range(20):
        first, second = schedule.get_last_lr()
        assert first == pytest.approx(50 * second)
        schedule.optimizer.step()
        schedule.step()


@every_schedule
@pytest.mark.parametrize(
    "wrong", [{"warmup": -0.1}, {"warmup": 1.1}, {"final": -0.1}, {"final": 2}, {"total_steps": 0}]
)
def test_a_schedule_refuses_values_out_of_range(cls: type, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=cls.__name__):
        cls(optimizer_with(), **{"total_steps": 10, **wrong})


def test_warmup_and_decay_may_fill_the_run_but_not_more() -> None:
    for warmup, decay in ((0.8, 0.2), (0.7, 0.3), (0.1, 0.9), (0, 1), (1, 0)):
        seen = rates(WarmupStableDecay(optimizer_with(), 10, warmup=warmup, decay=decay), 10)
        assert max(seen) == 2
    for warmup, decay in ((0.5, 0.6), (0.1, -0.1)):
        with pytest.raises(ValueError, match="decay"):
            WarmupStableDecay(optimizer_with(), 10, warmup=warmup, decay=decay)
