"""Spectron beside the paper's plain algorithm, its step scales, its state, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reference
from lrtrain.constraints import SpectralRenormalization
from lrtrain.optim import Spectron
from quadratic import matrices


@pytest.mark.parametrize(("nesterov", "weight_decay"), [(False, 0.0), (True, 0.0), (False, 0.5)])
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("orthogonalize", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_spectron_equals_the_plain_algorithm(
    orthogonalize: bool, renormalize: bool, nesterov: bool, weight_decay: float, dtype: torch.dtype, tolerance: float
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
    settings = {"orthogonalize": orthogonalize, "nesterov": nesterov, "weight_decay": weight_decay}
    expected = reference.spectron(pairs, gradients, rates, 0.9, renormalize=renormalize, **settings)

    parameters = [(nn.Parameter(a.clone()), nn.Parameter(b.clone())) for a, b in pairs]
    flat = [factor for pair in parameters for factor in pair]
    optimizer = Spectron(flat, momentum=0.9, **settings)
    constraint = SpectralRenormalization().hold({str(i): pair for i, pair in enumerate(parameters)})
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
        ({"weight_decay": -0.1}, "lr and weight_decay"),
        ({"weight_decay": 20.0}, "lr and weight_decay"),
    ],
)
def test_spectron_refuses_values_out_of_range(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Spectron: {message} must"):
        Spectron(matrices(), **wrong)


def test_spectron_refuses_a_parameter_that_is_no_matrix_by_its_name() -> None:
    with pytest.raises(ValueError, match=r"norm\.weight has the shape \(3,\)"):
        Spectron([*matrices(), ("norm.weight", nn.Parameter(torch.ones(3)))])
