"""What bounds a step, under the worst that training can do, and that a step waits for nothing."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import reference
from lrtrain.constraints import SpectralRenormalization
from lrtrain.optim import Spectron

kinds = st.sampled_from(["gaussian", "one column", "rank one", "huge", "tiny", "zero", "aligned"])
rates = st.lists(st.sampled_from([1e-4, 1e-2, 0.3, 1.0]), min_size=1, max_size=6)


def factors(out: int, into: int, rank: int, singular: float, scale: float, seed: int) -> tuple[Tensor, Tensor]:
    """A pair whose smallest singular value is `singular` times its largest."""
    condition = 1 / singular
    pair = [reference.matrix(max(rows, rank), rank, condition, seed + i) * scale for i, rows in enumerate((out, into))]
    a, b = (nn.Parameter(x.float()) for x in pair)
    return a, b


def gradient(kind: str, x: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    g = torch.randn_like(x)
    return {
        "gaussian": g,
        "one column": g * (torch.arange(x.shape[1]) == 0),
        "rank one": g[:, :1] @ g[:1],
        "huge": g * 1e30,
        "tiny": g * 1e-30,
        "zero": g * 0,
        "aligned": x.detach() / x.detach().norm().clamp_min(1e-30),
    }[kind]


@settings(max_examples=60)
@given(
    st.integers(2, 20),
    st.integers(2, 20),
    st.integers(1, 6),
    st.sampled_from([1.0, 1e-3, 1e-7]),
    st.sampled_from([1e-6, 1.0, 1e3]),
    st.lists(kinds, min_size=2, max_size=6),
    rates,
    st.sampled_from(["float32", "bfloat16"]),
    st.booleans(),
    st.sampled_from([0.0, 0.3]),
    st.integers(0, 2**31),
)
def test_strict_keeps_every_update_of_the_product_below_the_learning_rate(
    out: int,
    into: int,
    rank: int,
    singular: float,
    scale: float,
    gradients: list[str],
    spikes: list[float],
    precision: Any,
    nesterov: bool,
    decay: float,
    seed: int,
) -> None:
    rank = min(rank, out, into)
    a, b = factors(out, into, rank, singular, scale, seed)
    settings = {"precision": precision, "nesterov": nesterov, "weight_decay": decay}
    optimizer = Spectron([a, b], lr=1.0, strict=True, **settings)
    constraint = SpectralRenormalization().hold({"pair": (a, b)})
    for step, kind in enumerate(gradients):
        optimizer.param_groups[0]["lr"] = rate = spikes[step % len(spikes)]
        a.grad, b.grad = gradient(kind, a, seed + step), gradient(kind, b, seed - step)
        before = a.detach().double() @ b.detach().double().mT
        constraint.before_step(optimizer)
        optimizer.step()
        after = a.detach().double() @ b.detach().double().mT
        # Adding a step to float32 weights rounds each of them.
        rounding = 4e-7 * reference.norm(a) * reference.norm(b) * max(out, into) ** 0.5
        assert reference.norm(after - (1 - decay * rate) * before) <= rate * (1 + 1e-5) + rounding


def test_the_default_can_exceed_what_strict_cannot() -> None:
    """Aligned with large factors, O's singular values decide; five equal ones leave Newton–Schulz at 1.11."""
    ratios = {}
    for strict in (False, True):
        a, b = nn.Parameter(torch.eye(8, 5) * 100), nn.Parameter(torch.eye(8, 5) * 100)
        optimizer = Spectron([a, b], lr=1.0, strict=strict)
        constraint = SpectralRenormalization().hold({"pair": (a, b)})
        a.grad, b.grad = torch.eye(8, 5), torch.eye(8, 5)
        before = a.detach().double() @ b.detach().double().mT
        constraint.before_step(optimizer)
        optimizer.step()
        ratios[strict] = reference.norm(a.detach().double() @ b.detach().double().mT - before)
    assert ratios[False] > 1.1
    assert 0.9 < ratios[True] <= 1 + 1e-5


def test_at_large_norms_strict_exceeds_the_rate_by_the_rounding_of_the_weights_at_most() -> None:
    lr = 1e-3
    a, b = nn.Parameter(torch.eye(8, 5) * 100), nn.Parameter(torch.eye(8, 5) * 100)
    optimizer, constraint = Spectron([a, b], lr=lr, strict=True), SpectralRenormalization().hold({"pair": (a, b)})
    excess = []
    for _ in range(5):
        a.grad, b.grad = torch.eye(8, 5), torch.eye(8, 5)
        old = a.detach().double(), b.detach().double()
        constraint.before_step(optimizer)
        optimizer.step()
        excess.append(reference.norm(a.detach().double() @ b.detach().double().mT - old[0] @ old[1].mT) - lr)
        norms = [(float(x.norm()), reference.norm(x)) for x in old]
        assert excess[-1] <= 2**-24 * (norms[0][0] * norms[1][1] + norms[0][1] * norms[1][0]) + 1e-5 * lr
    assert max(excess) > 1e-5  # the limit is real


def test_strict_without_the_constraint_is_refused() -> None:
    parameter = nn.Parameter(torch.randn(4, 2))
    parameter.grad = torch.randn(4, 2)
    with pytest.raises(ValueError, match="SpectralRenormalization"):
        Spectron([parameter], strict=True).step()


def test_a_learning_rate_that_was_raised_beyond_one_is_refused_in_the_step() -> None:
    parameter = nn.Parameter(torch.randn(4, 2))
    parameter.grad = torch.randn(4, 2)
    optimizer = Spectron([parameter], lr=0.5)
    optimizer.param_groups[0]["lr"] = 1.5
    with pytest.raises(ValueError, match=r"\(0, 1\], .* got 1.5"):
        optimizer.step()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_reads_nothing_back_from_a_gpu(strict: bool, nesterov: bool, precision: Any) -> None:
    with FakeTensorMode():  # shapes and devices without values: whatever waits for a value raises
        pairs = {name: [torch.randn(rows, 96, device="cuda") for rows in (384, 160)] for name in "xyz"}
        optimizer = Spectron(
            [x for pair in pairs.values() for x in pair], nesterov=nesterov, strict=strict, precision=precision
        )
        constraint = SpectralRenormalization().hold({name: (a, b) for name, (a, b) in pairs.items()})
        for x in optimizer.param_groups[0]["params"]:
            x.grad = torch.randn_like(x)
        for _ in range(2):
            constraint.before_step(optimizer)
            optimizer.step()
        assert all(state["momentum"].device.type == "cuda" for state in optimizer.state.values())
        with pytest.raises(DataDependentOutputException):
            float(pairs["x"][0].sum())
