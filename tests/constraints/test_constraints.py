"""The constraints in a plain PyTorch loop, and the contract of every one of them."""

import importlib
import inspect
import io
import pkgutil
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

import lrtrain.constraints
import reference
from lrtrain.constraints import (
    BalancedRenormalization,
    Constraint,
    PartnerMetric,
    SpectralRenormalization,
    StiefelRetraction,
)
from lrtrain.linalg import orthonormality_error
from lrtrain.nn import LowRankLinear, SpectralLinear
from lrtrain.optim import CombinedOptimizer, LoRAMuon, Spectron, Stiefel, holders


def found() -> list[type]:
    """The public classes in `lrtrain.constraints`, in whatever file, that act around a step."""
    classes = set()
    for module in pkgutil.walk_packages(lrtrain.constraints.__path__, "lrtrain.constraints."):
        members = vars(importlib.import_module(module.name)).items()
        classes |= {
            c
            for name, c in members
            if inspect.isclass(c) and c.__module__ == module.name and name[0] != "_" and issubclass(c, Constraint)
        }
    return sorted(classes - {Constraint}, key=lambda c: c.__name__)


def make(cls: type) -> tuple[Any, CombinedOptimizer]:
    """A constraint on random matrices and an optimizer that holds them."""
    a, b, s = nn.Parameter(torch.randn(8, 3)), nn.Parameter(torch.randn(6, 3)), nn.Parameter(torch.rand(3))
    together = len(get_args(get_args(get_type_hints(cls)["held"])[1]))  # of a tuple; 0 for single parameters
    factors = {2: {"layer": (a, b)}, 3: {"layer": (a, s, b)}}.get(together, {"layer.0": a, "layer.1": b})
    matrices = LoRAMuon if cls is PartnerMetric else Stiefel if together == 3 else Spectron
    return cls().hold(factors), CombinedOptimizer([matrices([("a", a), ("b", b)], lr=0.1), AdamW([("s", s)], lr=0.1)])


def held(optimizer: Any) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def step(optimizer: Any, *constraints: Any) -> None:
    for constraint in constraints:
        constraint.before_step(optimizer)
    optimizer.step()
    for constraint in constraints:
        constraint.after_step()


def saved(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


every_constraint = pytest.mark.parametrize("cls", found())


def test_the_constraints_of_the_library_are_found() -> None:
    assert {SpectralRenormalization, StiefelRetraction} <= set(found())


@every_constraint
def test_a_restored_constraint_continues_bit_for_bit(cls: type) -> None:
    constraint, optimizer = make(cls)
    parameters = held(optimizer)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    for _ in range(3):
        step(optimizer, constraint)
    state = saved(constraint.state_dict())
    torch.manual_seed(1)
    other, resumed = make(cls)
    copies = held(resumed)
    with torch.no_grad():
        for copy, parameter in zip(copies, parameters, strict=True):
            copy.copy_(parameter)
            copy.grad = parameter.grad.clone()
            resumed.state[copy] = {name: value.clone() for name, value in optimizer.state[parameter].items()}
    other.load_state_dict(state)
    for _ in range(3):
        step(optimizer, constraint)
        step(resumed, other)
    assert all(torch.equal(p, q) for p, q in zip(parameters, copies, strict=True))


@every_constraint
def test_a_constraint_leaves_no_graph_and_asks_for_no_gradient(cls: type) -> None:
    constraint, optimizer = make(cls)
    for parameter in held(optimizer):
        parameter.grad = torch.randn_like(parameter)
    step(optimizer, constraint)
    for parameter in held(optimizer):
        assert parameter.is_leaf
        assert parameter.requires_grad
        assert parameter.grad_fn is None


# Spectral renormalization


def test_the_scales_are_those_of_the_paper() -> None:
    pairs = {str(i): (nn.Parameter(torch.randn(9, 3)), nn.Parameter(torch.randn(7, 3))) for i in range(3)}
    optimizer = Spectron([factor for pair in pairs.values() for factor in pair])
    constraint = SpectralRenormalization().hold(pairs)
    constraint.before_step(optimizer)
    for name, (a, b) in pairs.items():
        sigma_a, sigma_b = reference.norm(a), reference.norm(b)
        assert [float(s) for s in constraint.norms()[name]] == pytest.approx([sigma_a, sigma_b], rel=0.05)
        assert sum(float(s) for s in constraint.norms()[name]) <= (sigma_a + sigma_b) * 1.0001
        for factor in (a, b):
            measured = sum(float(s) for s in constraint.norms()[name])
            assert float(optimizer.step_scale[factor]) == pytest.approx(1 / (measured + 1))


def test_one_power_step_a_call_follows_the_norm_of_a_changing_factor() -> None:
    a, b = nn.Parameter(torch.randn(40, 10)), nn.Parameter(torch.randn(30, 10))
    optimizer, constraint = Spectron([a, b], lr=0.05), SpectralRenormalization().hold({"layer": (a, b)})
    for _ in range(60):
        a.grad, b.grad = torch.randn_like(a), torch.randn_like(b)
        step(optimizer, constraint)
    sigma_a, sigma_b = (float(s) for s in constraint.norms()["layer"])
    assert sigma_a == pytest.approx(reference.norm(a), rel=0.03)
    assert sigma_b == pytest.approx(reference.norm(b), rel=0.03)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("lr", [0.01, 0.3, 1.0])
def test_the_product_moves_by_little_more_than_the_learning_rate(scale: float, lr: float) -> None:
    layers = {str(i): LowRankLinear(24, 40, rank=6, std=scale) for i in range(2)}
    pairs = {name: layer.factor_pairs()[0] for name, layer in layers.items()}
    optimizer = Spectron([factor for pair in pairs.values() for factor in pair], lr=lr)
    constraint = SpectralRenormalization().hold(pairs)
    largest = 0.0
    for _ in range(10):
        before = {name: layer.materialize().detach().clone() for name, layer in layers.items()}
        for factor in [factor for pair in pairs.values() for factor in pair]:
            factor.grad = torch.randn_like(factor) * 100
        step(optimizer, constraint)
        for name, layer in layers.items():
            largest = max(largest, reference.norm(layer.materialize().detach() - before[name]) / lr)
    assert 0.02 < largest <= 1.3


def test_an_optimizer_without_step_scales_is_refused() -> None:
    a, b = nn.Parameter(torch.randn(8, 3)), nn.Parameter(torch.randn(6, 3))
    constraint = SpectralRenormalization().hold({"up": (a, b)})
    half = CombinedOptimizer([Spectron([("a", a)]), AdamW([("b", b)])])
    for optimizer in (AdamW([a, b]), half):
        with pytest.raises(TypeError, match="step scales for up"):
            constraint.before_step(optimizer)
    assert holders(half, "step_scale") == {a: half.optimizers[0]}


def test_a_state_that_lacks_a_pair_is_completed() -> None:
    layers = {name: LowRankLinear(24, 24, rank=6) for name in ("old", "new")}
    old, both = ({name: layers[name].factor_pairs()[0] for name in names} for names in (["old"], ["new", "old"]))
    optimizer = Spectron([factor for pair in both.values() for factor in pair])
    first, second = SpectralRenormalization().hold(old), SpectralRenormalization().hold(both)
    first.before_step(optimizer)
    second.load_state_dict(first.state_dict())
    second.before_step(optimizer)
    for name, (a, b) in both.items():
        assert [float(s) for s in second.norms()[name]] == pytest.approx(
            [reference.norm(a), reference.norm(b)], rel=0.1
        )


def test_float64_factors_are_measured_in_float64() -> None:
    a, b = (nn.Parameter(torch.randn(n, 3, dtype=torch.float64)) for n in (8, 6))
    constraint = SpectralRenormalization().hold({"layer": (a, b)})
    constraint.before_step(Spectron([a, b]))
    assert all(s.dtype == torch.float64 for s in constraint.norms()["layer"])


# Retraction


def test_after_a_step_the_columns_are_orthonormal_again_and_the_bases_are_those_of_the_qr() -> None:
    layers = [SpectralLinear(24, 40, rank=6), SpectralLinear(24, 40, rank=6), SpectralLinear(16, 24, rank=4)]
    bases = {f"{i}.{j}": p for i, layer in enumerate(layers) for j, p in enumerate(layer.orthonormal())}
    optimizer = AdamW([p for layer in layers for p in layer.parameters()], lr=0.03)
    constraint = StiefelRetraction().hold(bases)
    for _ in range(5):
        optimizer.zero_grad()
        sum(layer(torch.randn(4, layer.in_features)).square().sum() for layer in layers).backward()  # type: ignore[union-attr]
        constraint.before_step(optimizer)
        optimizer.step()
        assert max(float(orthonormality_error(p)) for p in bases.values()) > 1e-3
        expected: dict[str, Tensor] = {name: reference.qr(p.detach())[0] for name, p in bases.items()}
        storage = {name: p.data_ptr() for name, p in bases.items()}
        constraint.after_step()
        for name, p in bases.items():
            assert float(orthonormality_error(p)) <= 1e-5
            torch.testing.assert_close(p.detach().double(), expected[name], rtol=0, atol=1e-5)
            assert p.data_ptr() == storage[name]
            assert p.is_contiguous()


def test_retraction_of_orthonormal_columns_changes_nothing() -> None:
    layer = SpectralLinear(24, 40, rank=6)
    before = layer.materialize().detach().clone()
    StiefelRetraction().hold({"u": layer.U, "v": layer.V}).after_step()
    torch.testing.assert_close(layer.materialize(), before, rtol=0, atol=1e-5)


def test_restored_vectors_go_where_the_parameters_are() -> None:
    pairs = {name: (torch.empty(8, 3, device="meta"), torch.empty(6, 3, device="meta")) for name in ("one", "new")}
    factors = [nn.Parameter(x) for pair in pairs.values() for x in pair]
    constraint = SpectralRenormalization().hold({"one": tuple(factors[:2]), "new": tuple(factors[2:])})
    constraint.load_state_dict({"vectors": {"one.A": torch.ones(3) / 3**0.5, "one.B": torch.ones(3) / 3**0.5}})
    constraint.before_step(Spectron(factors))
    assert {vector.device.type for vector in constraint.state_dict()["vectors"].values()} == {"meta"}


@pytest.mark.parametrize("side", ["A", "B"])
def test_a_frozen_factor_is_named(side: str) -> None:
    model = nn.ModuleDict({"layer": LowRankLinear(8, 6, rank=3)})
    getattr(model["layer"], side).requires_grad_(False)
    optimizer = Spectron([p for p in model.parameters() if p.requires_grad])
    with pytest.raises(ValueError, match=f"^{side} of layer is frozen: .* list the constraints without"):
        SpectralRenormalization().attach(model, optimizer)


@pytest.mark.parametrize("side", ["U", "V"])
def test_a_frozen_basis_is_named(side: str) -> None:
    model = nn.ModuleDict({"layer": SpectralLinear(8, 6, rank=3)})
    getattr(model["layer"], side).requires_grad_(False)
    optimizer = Stiefel([p for name, p in model.named_parameters() if p.requires_grad and name[-1] in "UV"])
    with pytest.raises(ValueError, match=f"^{side} of layer is frozen"):
        BalancedRenormalization().attach(model, optimizer)
