"""Self-guided projections in a plain loop: the schedule, the coins, the mixture, and the end of the dense weights."""

import weakref
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from lrtrain.nn import Decoder, LowRankLinear, SelfGuidedLinear
from lrtrain.nn.projection import before_load, deleted_parameters
from lrtrain.nn.self_guided import guidance, guide, release
from lrtrain.optim import CombinedOptimizer, Spectron, Stiefel, remove_parameters
from quadratic import matrices, quadratic

GUIDED = partial(SelfGuidedLinear, rank_ratio=0.25)
LOW_RANK = partial(LowRankLinear, rank_ratio=0.25)


def stack(layers: int = 3) -> nn.Sequential:
    return nn.Sequential(*(GUIDED(16, 16) for _ in range(layers)))


def skipped(model: nn.Module, step: int, guided_steps: int, seed: int = 0) -> list[bool]:
    guide(model, step, guided_steps, seed)
    return [layer.skip_dense for layer in model.modules() if isinstance(layer, SelfGuidedLinear)]


def apart(layer: SelfGuidedLinear) -> SelfGuidedLinear:
    """A layer whose dense weight is no longer the product of its factors."""
    assert layer.W is not None
    with torch.no_grad():
        layer.W.add_(torch.randn_like(layer.W))
    return layer


# The schedule


@pytest.mark.parametrize(("step", "alpha"), [(0, 1.0), (25, 0.8535533905932737), (50, 0.5), (100, 0.0), (1000, 0.0)])
def test_guidance_falls_by_half_a_cosine(step: int, alpha: float) -> None:
    assert guidance(step, 100) == pytest.approx(alpha, abs=1e-15)


@given(st.integers(1, 100_000), st.data())
def test_guidance_falls_evenly_on_both_sides_of_the_middle(steps: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, steps - 1))
    assert 0 <= guidance(step + 1, steps) < guidance(step, steps) <= 1
    assert guidance(step, steps) + guidance(steps - step, steps) == pytest.approx(1, abs=1e-12)


def test_no_guided_step_is_no_guidance() -> None:
    assert guidance(0, 0) == 0


# The coins


@pytest.mark.parametrize("step", [0, 25, 50, 75])
def test_a_dense_part_is_skipped_with_the_probability_of_one_minus_alpha(step: int) -> None:
    model = nn.Sequential(*(GUIDED(4, 4) for _ in range(10)))
    coins = [coin for seed in range(400) for coin in skipped(model, step, 100, seed)]
    chance = 1 - guidance(step, 100)
    assert sum(coins) / len(coins) == pytest.approx(chance, abs=4 * (chance * (1 - chance) / len(coins)) ** 0.5)


def test_coins_depend_on_seed_step_and_layer_alone() -> None:
    state, model = torch.get_rng_state(), stack(64)
    coins = skipped(model, 50, 100)
    assert len(set(coins)) == 2
    torch.manual_seed(9)
    assert skipped(stack(64), 50, 100) == coins
    assert skipped(stack(64), 51, 100) != coins
    assert skipped(stack(64), 50, 100, seed=1) != coins
    torch.set_rng_state(state)
    guide(model, 3, 100)
    assert torch.equal(torch.get_rng_state(), state), "a coin was drawn from the global generator"


# The mixture


@pytest.mark.parametrize("step", [0, 30, 50, 90])
def test_the_output_mixes_both_parts_and_a_skipped_one_leaves_the_factors_alone(step: int) -> None:
    layer, x = apart(GUIDED(24, 40)), torch.randn(3, 24)
    alpha = guide(layer, step, 100)
    assert layer.W is not None
    factored = x @ layer.B @ layer.A.mT
    mixed = alpha * F.linear(x, layer.W) + (1 - alpha) * factored
    for skip in (False, True):
        layer.skip_dense = skip
        torch.testing.assert_close(layer.train()(x), factored if skip else mixed)
        torch.testing.assert_close(layer.eval()(x), mixed)
        torch.testing.assert_close(layer.eval()(x), x @ layer.materialize().mT, rtol=1e-4, atol=1e-5)


def test_a_skipped_dense_part_costs_nothing_and_gets_no_gradient() -> None:
    layer = GUIDED(24, 40)
    both = layer.flops_per_token
    layer.skip_dense = True
    assert both - layer.flops_per_token == 2 * 24 * 40
    assert layer.flops_per_token == LOW_RANK(24, 40).flops_per_token
    layer(torch.randn(3, 24)).sum().backward()
    assert layer.W is not None
    assert layer.W.grad is None
    assert layer.A.grad is not None


def test_a_seed_gives_the_factors_of_a_low_rank_projection() -> None:
    layers = []
    for make in (GUIDED, LOW_RANK):
        torch.manual_seed(3)
        layers.append(make(24, 40))
    assert torch.equal(layers[0].A, layers[1].A)
    assert torch.equal(layers[0].B, layers[1].B)


def test_computing_activations_again_tosses_no_other_coin() -> None:
    torch.manual_seed(0)
    decoder = Decoder(50, 32, 2, 2, 48, attention=GUIDED, mlp=GUIDED)
    assert len(set(skipped(decoder, 5, 10))) == 2
    tokens, gradients = torch.randint(0, 50, (2, 9)), []
    for recompute in (False, True):
        for block in decoder.blocks:
            block.recompute = recompute  # type: ignore[assignment]
        decoder.zero_grad()
        decoder.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        gradients.append([p.grad for p in decoder.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


# Training


def test_training_is_the_formula_written_out() -> None:
    """Against raw tensors with their own AdamW, whose dense part is left out where the layer's was skipped."""
    model, (x, target) = stack(2).double(), torch.randn(2, 8, 16, dtype=torch.float64)
    copied = lambda layer: {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()}  # noqa: E731
    plain = [copied(layer) for layer in model.children()]
    optimizer, others = AdamW(model.parameters(), lr=0.1), AdamW([p for w in plain for p in w.values()], lr=0.1)
    seen = []
    for step in range(12):
        alpha = guide(model, step, 8)
        if step == 8:
            remove_parameters(optimizer, release(model))
        optimizer.zero_grad()
        F.mse_loss(model(x), target).backward()
        optimizer.step()

        others.zero_grad()
        y, coins = x, [layer.skip_dense for layer in model.children()]
        for w, skip in zip(plain, coins, strict=True):
            product = y @ (w["A"] @ w["B"].mT).mT
            y = product if skip else alpha * (y @ w["W"].mT) + (1 - alpha) * product
        F.mse_loss(y, target).backward()
        others.step()
        seen += coins if step < 8 else []
        for layer, w in zip(model.children(), plain, strict=True):
            for name, parameter in layer.named_parameters():
                torch.testing.assert_close(parameter, w[name], rtol=1e-6, atol=1e-7)
    assert 0 < sum(seen) < len(seen)
    assert {name for name, _ in model.named_parameters()} == {f"{i}.{side}" for i in (0, 1) for side in "AB"}


# The end of the dense weights


@pytest.mark.parametrize("combined", [False, True])
def test_released_weights_and_their_optimizer_states_are_freed(combined: bool) -> None:
    model = stack()
    weights, factors = ([(n, p) for n, p in model.named_parameters() if (n[-1] == "W") == dense] for dense in (1, 0))
    optimizer: Optimizer = AdamW(model.named_parameters())
    if combined:
        optimizer = CombinedOptimizer([AdamW(weights), Spectron(factors)])

    def step() -> None:
        optimizer.zero_grad()
        model(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()

    step()
    kept = [weakref.ref(t) for _, p in weights for t in (p, p.grad, optimizer.state[p]["exp_avg"])]
    del weights
    assert all(ref() is not None for ref in kept)
    remove_parameters(optimizer, release(model))
    assert [ref() for ref in kept] == [None] * len(kept)
    step()
    names = {name for group in optimizer.state_dict()["param_groups"] for name in group["param_names"]}
    assert names == set(dict(model.named_parameters())) == {name for name, _ in factors}
    assert len(optimizer.state) == len(factors)


@pytest.mark.parametrize("make", [AdamW, Muon, Spectron, Stiefel])
def test_an_optimizer_that_has_forgotten_all_steps_the_others(make: Any) -> None:
    named = matrices()
    optimizer = CombinedOptimizer([make(named[:2], lr=0.1), AdamW(named[2:])])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    remove_parameters(optimizer, [p for _, p in named[:2]])
    before = [p.detach().clone() for _, p in named]
    quadratic(named).backward()
    optimizer.step()
    scheduler.step()
    assert [torch.equal(p, old) for (_, p), old in zip(named, before, strict=True)] == [True, True, False, False]
    assert [group["param_names"] for group in optimizer.param_groups] == [[], ["p2", "p3"]]


def test_a_released_model_is_a_low_rank_one() -> None:
    model, plain = stack(), nn.Sequential(*(LOW_RANK(16, 16) for _ in range(3)))
    for layer in model.children():
        apart(layer)
    x = torch.randn(4, 16)
    guide(model, 10, 10)
    last = model.eval()(x)
    assert len(release(model)) == 3
    assert deleted_parameters(model) == {"0.W", "1.W", "2.W"}
    assert release(model) == []
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(x), last)
    assert torch.equal(model.train()(x), plain(x))
    assert torch.equal(model[0].materialize(), plain[0].materialize())
    assert model[0].flops_per_token == plain[0].flops_per_token


def test_a_state_without_dense_weights_makes_a_model_release_its_own() -> None:
    saved = stack()
    guide(saved, 3, 10)
    for state, left in ((saved.state_dict(), 3), (_released(saved), 0)):
        model = stack()
        before_load(model, state)
        model.load_state_dict(state)
        assert sum(layer.W is not None for layer in model.children()) == left
        assert [layer.alpha for layer in model.children() if layer.alpha is not None] == [guidance(3, 10)] * left
    other = stack()
    before_load(other, {"0.weight": torch.ones(())})
    assert deleted_parameters(other) == set(), "a state of another architecture says nothing"


def _released(model: nn.Module) -> dict[str, Tensor]:
    release(model)
    return model.state_dict()
