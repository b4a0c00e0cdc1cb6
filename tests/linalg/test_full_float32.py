"""No product of the mathematics is rounded to TF32, whatever a user has told torch."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode

import reference
from lrtrain.constraints import (
    Constraint,
    FunctionPreservingRetraction,
    StiefelRetraction,
)
from lrtrain.linalg import full_float32, norm_bound, orthonormality_error, polar, spectral_norm, truncated_svd

PRODUCTS = {getattr(torch.ops.aten, name) for name in ("mm", "bmm", "mv", "addmm", "baddbmm", "addmv", "dot")}


class RoundedToTF32(TorchDispatchMode):
    """Does to products what a GPU does where TF32 is allowed: their inputs keep 10 bits behind the leading one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in PRODUCTS and torch.backends.cuda.matmul.fp32_precision == "tf32":
            args = [rounded(x) if isinstance(x, Tensor) and x.dtype == torch.float32 else x for x in args]
        return func(*args, **(kwargs or {}))


def rounded(x: Tensor) -> Tensor:
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.fixture(params=["set_float32_matmul_precision", "backends"])
def tf32(request: pytest.FixtureRequest) -> Iterator[None]:
    """TF32 as a user allows it, by the old switch or by the new one."""
    kept = torch.get_float32_matmul_precision()
    if request.param == "backends":
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    else:
        torch.set_float32_matmul_precision("high")
    with RoundedToTF32():
        yield
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"  # nobody has changed it for good
    torch.set_float32_matmul_precision(kept)


def test_without_the_guard_a_product_is_rounded_and_within_it_not(tf32: None) -> None:
    x = torch.randn(200, 50)
    exact = x.double().mT @ x.double()
    assert float((x.mT @ x - exact).norm() / exact.norm()) > 1e-5
    with full_float32():
        assert float((x.mT @ x - exact).norm() / exact.norm()) < 1e-6


@pytest.mark.parametrize("constraint", [StiefelRetraction(), FunctionPreservingRetraction()])
def test_a_retraction_leaves_orthonormal_columns(tf32: None, constraint: Constraint) -> None:
    u, v = (nn.Parameter(reference.matrix(rows, 24, 1.3, rows).float()) for rows in (160, 96))
    s = nn.Parameter(torch.linspace(2, 1, 24))
    held = {"layer": (u, s, v)} if isinstance(constraint, FunctionPreservingRetraction) else {"u": u, "v": v}
    constraint.hold(held).before_step(AdamW([("u", u), ("s", s), ("v", v)]))
    constraint.after_step()
    for basis in (u, v):
        assert float(orthonormality_error(basis.detach().double())) <= 2e-6


def test_the_bound_of_a_norm_holds(tf32: None) -> None:
    x = torch.full((640, 16), 1 + 2**-12)  # TF32 makes it 1, and the norm smaller
    x[0] = 2  # entries are scaled by the largest
    assert reference.norm(x) <= float(norm_bound(x))


def test_polar_factor_norms_and_svd_are_as_exact_as_without_tf32(tf32: None) -> None:
    x = reference.momentum("one over noise", 256, 64)
    assert reference.distance(polar(x), x) <= 1e-4
    assert reference.norm(x) <= float(norm_bound(x))
    sigma, _ = spectral_norm(x, torch.ones(64) / 8, 50)
    assert float(sigma) == pytest.approx(reference.norm(x), rel=1e-5)
    p, values, q = truncated_svd(x, 64)
    torch.testing.assert_close((p * values).double() @ q.double().mT, x.double(), rtol=0, atol=1e-6)
