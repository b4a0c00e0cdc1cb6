"""LoRA-Muon beside the plain algorithm, its invariance, what bounds its step, and what it refuses."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reference
from lrtrain.constraints import NothingToHoldError, PartnerMetric, attached, uncovered
from lrtrain.nn import DenseLinear, LowRankLinear
from lrtrain.optim import LoRAMuon, Spectron

SHAPES = [(12, 9, 4), (12, 9, 4), (40, 30, 5), (7, 7, 7)]  # out, in, rank


def target_gradients(targets: list[Tensor]) -> Callable[[list[Tensor]], list[Tensor]]:
    """Of Σ ‖A Bᵀ − T‖² with regard to [A₁, B₁, A₂, …]."""

    def gradients(factors: list[Tensor]) -> list[Tensor]:
        leaves = [factor.detach().requires_grad_() for factor in factors]
        products = [a @ b.mT for a, b in zip(leaves[::2], leaves[1::2], strict=True)]
        loss = sum((w - t.to(w.dtype)).square().sum() for w, t in zip(products, targets, strict=True))
        return list(torch.autograd.grad(loss, leaves))

    return gradients


class Run:
    """Pairs under LoRA-Muon and its constraint, without a model."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor]], **settings: Any) -> None:
        self.pairs = [(nn.Parameter(a.clone()), nn.Parameter(b.clone())) for a, b in pairs]
        self.flat = [factor for pair in self.pairs for factor in pair]
        self.optimizer = LoRAMuon(self.flat, **settings)
        self.constraint = PartnerMetric().hold({str(i): pair for i, pair in enumerate(self.pairs)})

    def step(self, gradients: list[Tensor], rate: float) -> None:
        self.optimizer.param_groups[0]["lr"] = rate
        for parameter, gradient in zip(self.flat, gradients, strict=True):
            parameter.grad = gradient
        self.constraint.before_step(self.optimizer)
        self.optimizer.step()

    def products(self) -> list[Tensor]:
        return [a.detach().double() @ b.detach().double().mT for a, b in self.pairs]


def drawn(dtype: torch.dtype = torch.float64) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    torch.manual_seed(0)
    pairs = [(torch.randn(out, r).to(dtype), torch.randn(into, r).to(dtype)) for out, into, r in SHAPES]
    return pairs, [torch.randn(out, into, dtype=torch.float64) for out, into, _ in SHAPES]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_lora_muon_equals_the_plain_algorithm(
    nesterov: bool, weight_decay: float, dtype: torch.dtype, tolerance: float
) -> None:
    pairs, targets = drawn(dtype)
    gradients, rates = target_gradients(targets), [0.02, 0.05, 0.1, 0.5, 1.0, 0.15, 0.1, 0.05]
    expected = reference.lora_muon(pairs, gradients, rates, 0.9, nesterov=nesterov, weight_decay=weight_decay)
    run = Run(pairs, momentum=0.9, nesterov=nesterov, weight_decay=weight_decay)
    for rate in rates:
        run.step(gradients(run.flat), rate)
    for parameter, plain, start in zip(run.flat, expected, (x for pair in pairs for x in pair), strict=True):
        moved = float((plain - start.double()).norm())
        assert moved > 0.1
        torch.testing.assert_close(parameter.detach().double(), plain, rtol=0, atol=tolerance * max(1.0, moved))


@settings(max_examples=30)
@given(st.sampled_from(SHAPES), st.integers(0, 2**31), st.sampled_from([1e-3, 1.0, 30.0]))
def test_how_the_factors_share_their_scale_changes_no_step_of_the_product(
    shape: tuple[int, int, int], seed: int, scale: float
) -> None:
    out, into, rank = shape
    a, b = (reference.matrix(rows, rank, 3, seed + i).float() for i, rows in enumerate((out, into)))
    torch.manual_seed(seed)
    turn = (torch.linalg.qr(torch.randn(rank, rank, dtype=torch.float64)).Q * torch.linspace(0.7, 1.4, rank)) * scale
    turned = (a.double() @ turn).float(), (b.double() @ torch.linalg.inv(turn).mT).float()
    gradients = target_gradients([torch.randn(out, into, dtype=torch.float64)])
    run, other = Run([(a, b)], weight_decay=0.1), Run([turned], weight_decay=0.1)
    for rate in (0.05, 0.1):
        run.step(gradients(run.flat), rate)
        other.step(gradients(other.flat), rate)
    (w,), (again,) = run.products(), other.products()
    assert reference.norm(w - again) <= 1e-5 * reference.norm(w)


def test_each_half_of_a_step_has_half_the_rate_as_its_norm() -> None:
    """With an exact polar factor, to which many steps of the convergent cubic come."""
    pairs, targets = drawn()
    run = Run(pairs, ns_steps=40, coefficients=(1.5, -0.5, 0.0))
    before = [(a.detach().clone(), b.detach().clone()) for a, b in run.pairs]
    run.step(target_gradients(targets)(run.flat), 0.1)
    for (a, b), (new_a, new_b) in zip(before, run.pairs, strict=True):
        halves = (new_a.detach() - a) @ b.mT, a @ (new_b.detach() - b).mT
        assert [reference.norm(half) for half in halves] == pytest.approx([0.05, 0.05], rel=1e-4)


kinds = st.sampled_from(["gaussian", "rank one", "huge", "tiny", "zero", "aligned"])


@settings(max_examples=60)
@given(
    st.integers(2, 20),
    st.integers(2, 20),
    st.integers(1, 6),
    st.sampled_from([1.0, 1e-2, 1e-7, 0.0]),
    st.sampled_from([1e-6, 1.0, 1e3]),
    st.lists(kinds, min_size=2, max_size=6),
    st.sampled_from([1e-4, 1e-2, 0.3, 2.0]),
    st.sampled_from([0.0, 0.1]),
    st.integers(0, 2**31),
)
def test_strict_keeps_every_update_of_the_product_below_the_learning_rate(
    out: int,
    into: int,
    rank: int,
    singular: float,
    scale: float,
    gradients: list[str],
    rate: float,
    weight_decay: float,
    seed: int,
) -> None:
    rank = min(rank, out, into)
    a, b = (reference.matrix(rows, rank, 1e9, seed + i).float() * scale for i, rows in enumerate((out, into)))
    if singular:
        a, b = (reference.matrix(x.shape[0], rank, 1 / singular, seed).float() * scale for x in (a, b))
    run = Run([(a, b)], weight_decay=weight_decay, strict=True)
    for step, kind in enumerate(gradients):
        torch.manual_seed(seed + step)
        (before,) = run.products()
        sizes = [reference.norm(x) for x in run.flat]
        run.step([_gradient(kind, x) for x in run.flat], rate)
        (after,) = run.products()
        sizes = [max(old, reference.norm(x)) for old, x in zip(sizes, run.flat, strict=True)]
        rounding = 4e-7 * sizes[0] * sizes[1] * max(out, into) ** 0.5
        assert reference.norm(after - (1 - rate * weight_decay) * before) <= rate * (1 + 1e-4) + rounding


def _gradient(kind: str, x: Tensor) -> Tensor:
    g = torch.randn_like(x)
    return {
        "gaussian": g,
        "rank one": g[:, :1] @ g[:1],
        "huge": g * 1e30,
        "tiny": g * 1e-30,
        "zero": g * 0,
        "aligned": x.detach() / x.detach().norm().clamp_min(1e-30),
    }[kind]


def test_the_default_can_exceed_what_strict_cannot() -> None:
    moved = {}
    for strict in (False, True):
        run = Run([(torch.eye(8, 5) * 0.1, torch.eye(8, 5) * 0.1)], strict=strict)
        (before,) = run.products()
        run.step([-torch.eye(8, 5), -torch.eye(8, 5)], 0.1)
        moved[strict] = reference.norm(run.products()[0] - before)
    assert moved[False] > 0.3
    assert 0.08 < moved[True] <= 0.1 * (1 + 1e-5)


@pytest.mark.parametrize("strict", [False, True])
def test_a_factor_of_zeros_moves_by_the_other_alone(strict: bool) -> None:
    a, b = torch.randn(8, 3), torch.zeros(6, 3)
    run = Run([(a, b)], strict=strict)
    gradients = target_gradients([torch.randn(8, 6, dtype=torch.float64)])
    run.step(gradients(run.flat), 0.1)
    assert torch.equal(run.flat[0], a)
    assert 0.03 < reference.norm(run.products()[0]) < 0.07
    for _ in range(3):
        run.step(gradients(run.flat), 0.1)
    assert all(bool(x.isfinite().all()) for x in run.flat)
    assert not torch.equal(run.flat[0], a)


def test_a_step_consumes_its_roots_and_strict_needs_new_ones() -> None:
    pairs, targets = drawn()
    run = Run(pairs, strict=True)
    run.step(target_gradients(targets)(run.flat), 0.1)
    assert not run.optimizer.partner_root
    assert not run.optimizer.cross_norm
    with pytest.raises(ValueError, match=r"strict needs the root of every other factor .*PartnerMetric"):
        run.optimizer.step()
    assert copy.deepcopy(run.optimizer).strict


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(300, 80), (90, 80)])
def test_every_precision_and_form_is_near_the_plain_one(precision: Any, shape: tuple[int, int]) -> None:
    rows, rank = shape
    pair = [reference.matrix(n, rank, 10, n).float() for n in (rows, rows + 1)]
    gradients = [torch.randn(n, rank) for n in (rows, rows + 1)]
    expected = reference.lora_muon([(pair[0], pair[1])], lambda _: [g.double() for g in gradients], [0.1], 0.0)
    run = Run([(pair[0], pair[1])], momentum=0.0, precision=precision)
    run.step(gradients, 0.1)
    for parameter, plain, start in zip(run.flat, expected, pair, strict=True):
        error = (parameter.detach().double() - plain).norm() / (plain - start.double()).norm()
        assert error < {"float32": 1e-3, "bfloat16": 0.1}[precision]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": -0.1}, "lr and weight_decay"),
        ({"weight_decay": -1.0}, "lr and weight_decay"),
        ({"lr": 0.5, "weight_decay": 2.0}, "product below 1"),
        ({"momentum": 1.0}, "momentum"),
        ({"ns_steps": 0}, "ns_steps"),
        ({"precision": "float16"}, "precision"),
        ({"coefficients": "newton"}, "coefficients"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoRAMuon([nn.Parameter(torch.randn(8, 3))], **wrong)


def test_a_matrix_of_no_pair_moves_by_the_rate_and_decays_by_it() -> None:
    w, gradient = torch.randn(5, 9), torch.randn(5, 9)
    parameter = nn.Parameter(w.clone())
    parameter.grad = gradient
    LoRAMuon([parameter], lr=0.1, weight_decay=0.5).step()
    expected = 0.95 * w - 0.1 * reference.polar_newton_schulz(gradient).float()
    torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-4)


def test_the_constraint_is_attached_by_itself_to_what_needs_it() -> None:
    model = nn.Sequential(LowRankLinear(8, 6, rank=2), LowRankLinear(6, 8, rank=2))
    assert [*attached(None, model, LoRAMuon(model.parameters()))] == ["PartnerMetric"]
    assert [*attached(None, model, Spectron(model.parameters()))] == ["SpectralRenormalization"]
    with pytest.raises(NothingToHoldError, match="LoRAMuon"):
        PartnerMetric().attach(model, Spectron(model.parameters()))


def test_parameters_of_no_pair_are_said_in_a_line() -> None:
    model = nn.Sequential(LowRankLinear(8, 6, rank=2), DenseLinear(6, 4))
    optimizer = LoRAMuon(model.parameters())
    (line,) = uncovered(None, attached(None, model, optimizer), model, optimizer)
    assert line.startswith(
        "1 of 3 parameters of LoRAMuon get no root of the other factor and move by the learning rate"
    )
    dense = nn.Sequential(DenseLinear(6, 4))
    with pytest.raises(NothingToHoldError, match="no pair"):
        PartnerMetric().attach(dense, LoRAMuon(dense.parameters()))
