"""Spectron, the combined optimizer, the slots and the schedules; the contract of every optimizer in `lrtrain.optim`."""

import copy
import importlib
import inspect
import io
import math
import pkgutil
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LRScheduler

import lrtrain.optim
import reference
from lrtrain.constraints import SpectralRenormalization
from lrtrain.optim import (
    CombinedOptimizer,
    Optimizers,
    Spectron,
    WarmupCosine,
    WarmupStableDecay,
    build_optimizer,
    coverage_table,
)

Named = list[tuple[str, Tensor]]


def classes(base: type) -> list[type]:
    """The public subclasses of a base that `lrtrain.optim` defines, in whatever file."""
    found = set()
    for module in pkgutil.walk_packages(lrtrain.optim.__path__, "lrtrain.optim."):
        members = vars(importlib.import_module(module.name)).items()
        found |= {c for name, c in members if inspect.isclass(c) and issubclass(c, base) and name[0] != "_"}
    return sorted((c for c in found if c.__module__.startswith("lrtrain.")), key=lambda c: c.__name__)


def make(cls: type, named: Named) -> Optimizer:
    if cls is CombinedOptimizer:
        return cls([Spectron(named[:2], lr=0.1), AdamW(named[2:], lr=0.01)])
    return cls(named, lr=0.1)


def matrices(*shapes: tuple[int, int], seed: int = 0) -> Named:
    generator = torch.Generator().manual_seed(seed)
    shapes = shapes or ((8, 3), (6, 3), (8, 3), (5, 2))
    return [(f"p{i}", nn.Parameter(torch.randn(*shape, generator=generator))) for i, shape in enumerate(shapes)]


def quadratic(named: Named) -> Tensor:
    return sum((p * (i + 1)).square().sum() for i, (_, p) in enumerate(named))  # type: ignore[return-value]


def closure_of(optimizer: Optimizer, named: Named) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = quadratic(named)
        loss.backward()
        return loss

    return closure


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


every_optimizer = pytest.mark.parametrize("cls", classes(Optimizer))
every_schedule = pytest.mark.parametrize("cls", classes(LRScheduler))


def test_the_optimizers_and_schedules_of_the_library_are_found() -> None:
    assert {Spectron, CombinedOptimizer} <= set(classes(Optimizer))
    assert {WarmupCosine, WarmupStableDecay} <= set(classes(LRScheduler))


# Every optimizer


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


# Spectron


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("orthogonalize", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_spectron_equals_the_plain_algorithm(
    orthogonalize: bool, renormalize: bool, dtype: torch.dtype, tolerance: float
) -> None:
    shapes = [(12, 9, 4), (12, 9, 4), (7, 12, 3)]  # out, in, rank: two pairs of equal shape and one of another
    pairs = [(torch.randn(out, r).to(dtype), torch.randn(into, r).to(dtype)) for out, into, r in shapes]
    targets = [torch.randn(out, into, dtype=torch.float64) for out, into, _ in shapes]

    def gradients(factors: list[Tensor]) -> list[Tensor]:
        leaves = [factor.detach().requires_grad_() for factor in factors]
        products = [a @ b.mT for a, b in zip(leaves[::2], leaves[1::2], strict=True)]
        loss = sum((w - t.to(w.dtype)).square().sum() for w, t in zip(products, targets, strict=True))
        return list(torch.autograd.grad(loss, leaves))

    rates = [0.02, 0.05, 0.1, 0.2, 0.2, 0.15, 0.1, 0.05, 0.02, 0.01]
    expected = reference.spectron(
        pairs, gradients, rates, momentum=0.9, orthogonalize=orthogonalize, renormalize=renormalize
    )

    parameters = [(nn.Parameter(a.clone()), nn.Parameter(b.clone())) for a, b in pairs]
    flat = [factor for pair in parameters for factor in pair]
    optimizer = Spectron(flat, momentum=0.9, orthogonalize=orthogonalize)
    constraint = SpectralRenormalization({str(i): pair for i, pair in enumerate(parameters)})
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        for parameter, gradient in zip(flat, gradients(flat), strict=True):
            parameter.grad = gradient
        if renormalize:
            constraint.before_step(optimizer)
        optimizer.step()
    moved = max(float((e - s.double()).norm()) for e, s in zip(expected, (x for p in pairs for x in p), strict=True))
    assert moved > 0.1
    for parameter, plain in zip(flat, expected, strict=True):
        torch.testing.assert_close(parameter.detach().double(), plain, rtol=0, atol=tolerance * max(1.0, moved))


def test_spectron_consumes_its_step_scales() -> None:
    named = matrices((8, 3))
    optimizer, other = Spectron(named, lr=0.1), Spectron(matrices((8, 3)), lr=0.1)
    (parameter,), (unscaled,) = (o.param_groups[0]["params"] for o in (optimizer, other))
    for o in (optimizer, other):
        o.param_groups[0]["params"][0].grad = torch.ones(8, 3)
    before = parameter.detach().clone()
    optimizer.step_scale[parameter] = torch.tensor(0.25)
    optimizer.step()
    other.step()
    torch.testing.assert_close(parameter - before, 0.25 * (unscaled - before))
    assert not optimizer.step_scale


def test_spectron_creates_the_state_of_every_parameter_in_its_first_step() -> None:
    named = matrices()
    optimizer = Spectron(named)
    named[0][1].grad = torch.ones_like(named[0][1])
    optimizer.step()
    assert all(optimizer.state[p]["momentum"].shape == p.shape for _, p in named)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": 0.0}, "lr"),
        ({"lr": -0.1}, "lr"),
        ({"lr": 1.5}, "lr"),
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": -0.1}, "momentum"),
        ({"ns_steps": 0}, "ns_steps"),
    ],
)
def test_spectron_refuses_values_out_of_range(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Spectron: {message} must be"):
        Spectron(matrices(), **wrong)


def test_spectron_refuses_a_parameter_that_is_no_matrix_by_its_name() -> None:
    with pytest.raises(ValueError, match=r"norm\.weight has the shape \(3,\)"):
        Spectron([*matrices(), ("norm.weight", nn.Parameter(torch.ones(3)))])


# CombinedOptimizer


def three_parts(named: Named, lr: float = 0.05) -> list[Optimizer]:
    return [Spectron(named[:2], lr=lr), Muon(named[2:3], lr=lr / 2), AdamW(named[3:], lr=lr / 10, weight_decay=0.1)]


def train(optimizer: Optimizer, named: Named, steps: int) -> None:
    for _ in range(steps):
        optimizer.step(closure_of(optimizer, named))


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


# Slots


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
    rows = [line.split() for line in coverage_table(slots).splitlines()]
    assert rows == [
        ["pattern", "parameters", "count", "optimizer", "lr", "weight", "decay"],
        ["*.s", "1", "2", "AdamW", "0.001", "0.01"],
        ["hidden", "2", "20", "SGD", "0.1", "0"],
        ["other", "2", "32", "AdamW", "0.002", "0.1"],
    ]


# Schedules


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
