"""The mathematics of the constraints that go beyond SCT's QR retraction."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Muon, Optimizer

import reference
from lrtrain.constraints import (
    BalancedRenormalization,
    FunctionPreservingRetraction,
    StiefelRetraction,
    TangentProjection,
    spectral_triples,
)
from lrtrain.nn import LowRankLinear, SpectralLinear
from lrtrain.optim import CombinedOptimizer, Spectron, Stiefel

Triple = tuple[nn.Parameter, nn.Parameter, nn.Parameter]


def basis(rows: int, columns: int, seed: int) -> Tensor:
    return reference.qr(reference.matrix(rows, columns, 1.0, seed))[0]


def triple(s: Tensor, into: int = 14, out: int = 11, off: float = 0.0, seed: int = 3) -> Triple:
    """(U, s, V) with bases that deviate from orthonormal ones by entries of about `off`."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (basis(rows, len(s), seed + rows) for rows in (into, out))
    u, v = (x + off * torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (u, v))
    return nn.Parameter(u.to(s.dtype)), nn.Parameter(s.clone()), nn.Parameter(v.to(s.dtype))


def weight(u: Tensor, s: Tensor, v: Tensor) -> Tensor:
    return ((v * s) @ u.mT).detach()


def error(x: Tensor) -> float:
    return float((x.mT @ x - torch.eye(x.shape[1]).to(x)).detach().abs().max())


def optimizer_of(parameters: Triple, rate: float = 0.01) -> Optimizer:
    return AdamW([(name, p) for name, p in zip("UsV", parameters, strict=True)], lr=rate, weight_decay=0.0)


# Gradients and momenta in the tangent space


def test_gradients_are_projected_in_place_and_missing_ones_passed_over() -> None:
    u, _, v = triple(torch.rand(4).double())
    still = nn.Parameter(basis(9, 3, 0))
    kept = {p: torch.randn_like(p) for p in (u, v)}
    for p, gradient in kept.items():
        p.grad = gradient.clone()
    places = [p.grad.data_ptr() for p in kept if p.grad is not None]
    TangentProjection().hold({"u": u, "still": still, "v": v}).before_step(SGD([u, v, still]))
    for p, gradient in kept.items():
        assert p.grad is not None
        assert float((p.grad - gradient).norm()) > 0.1
        torch.testing.assert_close(p.grad, reference.tangent(p.detach(), gradient))
    assert [p.grad.data_ptr() for p in kept if p.grad is not None] == places
    assert still.grad is None


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda p: AdamW(p, lr=0.05), "exp_avg"),
        (lambda p: Spectron(p, lr=0.05), "momentum"),
        (lambda p: Stiefel(p, lr=0.05, direction="adam"), "momentum"),
        (lambda p: Muon(p, lr=0.05), "momentum_buffer"),
        (lambda p: SGD(p, lr=0.05, momentum=0.9), "momentum_buffer"),
        (lambda p: CombinedOptimizer([AdamW([("u", p[0])], lr=0.05), Spectron([("v", p[1])])]), None),
    ],
)
def test_the_first_moments_are_carried_to_the_new_tangent_space(
    make: Callable[[list[Tensor]], Optimizer], name: str | None
) -> None:
    parameters = [nn.Parameter(basis(rows, 4, rows).float()) for rows in (14, 14, 9)][:2]
    optimizer = make(parameters)
    constraint = StiefelRetraction(transport=True).hold({str(i): p for i, p in enumerate(parameters)})
    names = [name or each for each in ("exp_avg", "momentum")]
    for _ in range(3):
        for p in parameters:
            p.grad = torch.randn_like(p)
        constraint.before_step(optimizer)
        optimizer.step()
        before = [{key: value.clone() for key, value in optimizer.state[p].items()} for p in parameters]
        constraint.after_step()
        for p, old, moment in zip(parameters, before, names, strict=True):
            new = optimizer.state[p]
            assert float((new[moment] - old[moment]).norm()) > 1e-3
            torch.testing.assert_close(
                new[moment].double(), reference.tangent(p.detach(), old[moment]), rtol=0, atol=1e-5
            )
            assert all(torch.equal(new[key], value) for key, value in old.items() if key != moment)


def test_without_transport_the_moments_stay() -> None:
    p = nn.Parameter(basis(14, 4, 0))
    optimizer, constraint = AdamW([p], lr=0.05), StiefelRetraction().hold({"p": p})
    p.grad = torch.randn_like(p)
    constraint.before_step(optimizer)
    optimizer.step()
    kept = optimizer.state[p]["exp_avg"].clone()
    constraint.after_step()
    assert torch.equal(optimizer.state[p]["exp_avg"], kept)


# The retraction that preserves the function

values = st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.5, 0.5, 1.0, 1.0 + 1e-9, 3.0]), min_size=1, max_size=6)


@given(s=values, off=st.sampled_from([0.0, 1e-9, 1e-3, 0.1, 2.0]), into=st.integers(6, 20), out=st.integers(6, 20))
def test_the_weight_stays_and_is_written_as_its_singular_value_decomposition(
    s: list[float], off: float, into: int, out: int
) -> None:
    u, sigma, v = triple(torch.tensor(s, dtype=torch.float64), into, out, off)
    before = weight(u, sigma, v)
    FunctionPreservingRetraction().hold({"w": (u, sigma, v)}).after_step()
    scale = max(1.0, reference.norm(before))
    torch.testing.assert_close(weight(u, sigma, v), before, rtol=0, atol=1e-12 * scale)
    assert max(error(u), error(v)) <= 1e-12
    torch.testing.assert_close(sigma.detach(), torch.linalg.svdvals(before)[: len(s)], rtol=0, atol=1e-12 * scale)


def test_in_float32_the_weight_stays_and_the_bases_stay_orthonormal_over_many_steps() -> None:
    layers = [SpectralLinear(24, 40, rank=6), SpectralLinear(24, 40, rank=6), SpectralLinear(16, 24, rank=4)]
    triples = {str(i): layer.spectral_triples()[0] for i, layer in enumerate(layers)}
    optimizer = AdamW([p for parameters in triples.values() for p in parameters], lr=0.03)
    constraint = FunctionPreservingRetraction().hold(triples)
    for _ in range(30):
        optimizer.zero_grad()
        sum(layer(torch.randn(4, layer.in_features)).square().sum() for layer in layers).backward()  # type: ignore[union-attr]
        constraint.before_step(optimizer)
        optimizer.step()
        before = [layer.materialize().detach() for layer in layers]
        constraint.after_step()
        for layer, old in zip(layers, before, strict=True):
            torch.testing.assert_close(layer.materialize().detach(), old, rtol=0, atol=3e-6)
            assert max(error(p) for p in layer.orthonormal()) <= 3e-6
            assert all(p.is_contiguous() for p in layer.orthonormal())
        assert float((before[0] - layers[0].materialize().detach()).norm()) > 0  # and is not skipped


def test_a_small_step_moves_well_separated_columns_little() -> None:
    u, s, v = triple(torch.tensor([4.0, 2.0, 1.0]).double(), off=1e-4)
    old = [p.detach().clone() for p in (u, s, v)]
    FunctionPreservingRetraction().hold({"w": (u, s, v)}).after_step()
    for p, before in zip((u, s, v), old, strict=True):
        torch.testing.assert_close(p.detach(), before, rtol=0, atol=2e-3)


def linear_gradients(parameters: Triple, direction: Tensor) -> list[Tensor]:
    """Gradients of ⟨D, W⟩, for which dL/dW = D at every weight."""
    u, s, v = (p.detach().requires_grad_() for p in parameters)
    return list(torch.autograd.grad((((v * s) @ u.mT) * direction).sum(), (u, s, v)))


def with_moments(parameters: Triple, gradients: list[Tensor]) -> Optimizer:
    """An optimizer whose averages are these gradients and their squares."""
    optimizer = optimizer_of(parameters)
    for p, gradient in zip(parameters, gradients, strict=True):
        optimizer.state[p] = {"step": torch.tensor(1.0), "exp_avg": gradient, "exp_avg_sq": gradient.square()}
    return optimizer


@given(s=values, off=st.sampled_from([0.0, 1e-3, 0.3]), seed=st.integers(0, 99))
def test_the_moments_of_the_bases_become_the_gradients_at_the_new_bases(s: list[float], off: float, seed: int) -> None:
    parameters = triple(torch.tensor(s, dtype=torch.float64), off=off)
    direction = torch.randn(11, 14, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    optimizer = with_moments(parameters, linear_gradients(parameters, direction))
    constraint = FunctionPreservingRetraction().hold({"w": parameters})
    constraint.before_step(optimizer)
    constraint.after_step()
    expected = linear_gradients(parameters, direction)
    for index in (0, 2):
        moment = optimizer.state[parameters[index]]["exp_avg"]
        torch.testing.assert_close(moment, expected[index], rtol=0, atol=1e-10)


def test_all_moments_follow_columns_that_are_reordered_or_change_their_sign() -> None:
    parameters = triple(torch.tensor([0.5, -3.0, 1.0, -2.0]).double())
    direction = torch.randn(11, 14, dtype=torch.float64)
    optimizer = with_moments(parameters, linear_gradients(parameters, direction))
    constraint = FunctionPreservingRetraction().hold({"w": parameters})
    constraint.before_step(optimizer)
    constraint.after_step()
    torch.testing.assert_close(parameters[1].detach(), torch.tensor([3.0, 2.0, 1.0, 0.5]).double())
    for p, gradient in zip(parameters, linear_gradients(parameters, direction), strict=True):
        torch.testing.assert_close(optimizer.state[p]["exp_avg"], gradient, rtol=0, atol=1e-10)
        torch.testing.assert_close(optimizer.state[p]["exp_avg_sq"], gradient.square(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("transport", [False, True])
def test_training_does_not_depend_on_the_order_of_the_columns(transport: bool) -> None:
    target = torch.randn(11, 14, dtype=torch.float64)
    ends = []
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        u, s, v = triple(torch.tensor([3.0, 2.0, 1.0, 0.5]).double())
        parameters = tuple(nn.Parameter(p.detach()[..., order].clone()) for p in (u, s, v))
        optimizer = optimizer_of(parameters, 0.02)  # type: ignore[arg-type]
        constraint = FunctionPreservingRetraction(transport).hold({"w": parameters})  # type: ignore[dict-item]
        start = weight(*parameters)
        for _ in range(6):
            optimizer.zero_grad()
            ((parameters[2] * parameters[1]) @ parameters[0].mT - target).square().sum().backward()
            constraint.before_step(optimizer)
            optimizer.step()
            constraint.after_step()
        ends.append(weight(*parameters))
        assert float((ends[-1] - start).norm()) > 0.1
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-9)


def test_with_transport_the_moments_are_tangent_at_the_new_bases() -> None:
    parameters = triple(torch.tensor([3.0, 2.0, 1.0]).double(), off=0.1)
    optimizer = with_moments(parameters, [torch.randn_like(p) for p in parameters])
    constraint = FunctionPreservingRetraction(transport=True).hold({"w": parameters})
    constraint.before_step(optimizer)
    constraint.after_step()
    for p in (parameters[0], parameters[2]):
        product = p.detach().mT @ optimizer.state[p]["exp_avg"]
        torch.testing.assert_close(product, -product.mT, rtol=0, atol=1e-12)


# Scales that bound ‖ΔW‖₂


@given(
    s=st.lists(st.sampled_from([-3.0, 0.0, 1e-12, 1e-3, 0.5, 2.0, 300.0]), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
def test_the_update_of_the_weight_is_bounded_by_the_learning_rate(s: list[float], seed: int) -> None:
    u, sigma, v = triple(torch.tensor(s, dtype=torch.float64))
    generator = torch.Generator().manual_seed(seed)
    optimizer = Stiefel([u, v], lr=0.3, ns_steps=5)
    constraint = BalancedRenormalization().hold({"w": (u, sigma, v)})
    before = weight(u, sigma, v)
    for p in (u, v):
        p.grad = 100 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    constraint.before_step(optimizer)
    optimizer.step()
    assert reference.norm(weight(u, sigma, v) - before) <= 1.25 * 0.3  # ‖O‖₂ ≤ 1.2 after five Newton–Schulz steps
    FunctionPreservingRetraction().hold({"w": (u, sigma, v)}).after_step()
    assert reference.norm(weight(u, sigma, v) - before) <= 1.25 * 0.3


def test_a_bounded_step_is_spectrons_step_on_the_balanced_factors() -> None:
    u, s, v = triple(torch.tensor([3.0, 2.0, 0.7]).double())
    a, b = (nn.Parameter((p * s.sqrt()).detach()) for p in (v, u))
    target = torch.randn(11, 14, dtype=torch.float64)
    ((v * s.detach()) @ u.mT - target).square().sum().backward()
    (a @ b.mT - target).square().sum().backward()
    stiefel, spectron = Stiefel([u, v], lr=0.2), Spectron([a, b], lr=0.2, nesterov=True)
    BalancedRenormalization().hold({"w": (u, s, v)}).before_step(stiefel)
    for factor in (a, b):
        spectron.step_scale[factor] = 1 / (2 * s.detach().max().sqrt() + 1)
    stiefel.step()
    spectron.step()
    torch.testing.assert_close(weight(u, s, v), (a @ b.mT).detach(), rtol=0, atol=1e-9)


def test_an_optimizer_without_column_scales_is_refused() -> None:
    u, s, v = triple(torch.ones(3))
    half = CombinedOptimizer([Stiefel([("u", u)]), Spectron([("v", v)])])
    for optimizer in (AdamW([u, s, v]), half):
        with pytest.raises(TypeError, match="column scales for up"):
            BalancedRenormalization().hold({"up": (u, s, v)}).before_step(optimizer)


# What a model states


def test_a_model_states_its_triples_by_name() -> None:
    model = nn.ModuleDict({"up": SpectralLinear(24, 40, rank=6), "down": LowRankLinear(40, 24, rank=6)})
    triples = spectral_triples(model)
    layer = model["up"]
    assert {name: tuple(map(id, parameters)) for name, parameters in triples.items()} == {
        "up": (id(layer.U), id(layer.s), id(layer.V))
    }
    u, s, v = triples["up"]
    torch.testing.assert_close(weight(u, s, v), layer.materialize().detach())
