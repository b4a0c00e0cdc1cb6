"""The tangent space, and the optimizer whose learning rate is an angle."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import reference
from lrtrain.linalg import project_to_tangent
from lrtrain.optim import Stiefel

SHAPES = ((12, 4), (12, 4), (9, 9), (40, 1))


def basis(rows: int, columns: int, seed: int = 7) -> Tensor:
    return reference.qr(reference.matrix(rows, columns, 1.0, seed))[0]


def parameter(x: Tensor, gradient: Tensor) -> nn.Parameter:
    held = nn.Parameter(x.clone())
    held.grad = gradient.clone()
    return held


# The tangent space


@given(
    shapes=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 8)), min_size=1, max_size=4),
    scale=st.sampled_from([1e-12, 1.0, 1e12]),
    seed=st.integers(0, 99),
)
def test_a_direction_is_split_into_a_tangent_and_a_normal_part(
    shapes: list[tuple[int, int]], scale: float, seed: int
) -> None:
    bases = [basis(columns + more, columns, seed) for more, columns in shapes]
    generator = torch.Generator().manual_seed(seed)
    directions = [scale * torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in bases]
    for x, z, t in zip(bases, directions, project_to_tangent(bases, directions), strict=True):
        tolerance = 1e-12 * scale * x.shape[0]
        assert float((x.mT @ t + t.mT @ x).abs().max()) <= tolerance  # tangent
        normal = z - t
        torch.testing.assert_close(x @ (x.mT @ normal), normal, rtol=0, atol=tolerance)  # X S …
        torch.testing.assert_close(x.mT @ normal, normal.mT @ x, rtol=0, atol=tolerance)  # … with a symmetric S
        torch.testing.assert_close(project_to_tangent([x], [t])[0], t, rtol=0, atol=tolerance)
        torch.testing.assert_close(t, reference.tangent(x, z), rtol=0, atol=tolerance)


def test_the_tangent_part_comes_in_the_dtype_of_the_direction() -> None:
    x, z = basis(12, 4).float(), torch.randn(12, 4).bfloat16()
    (t,) = project_to_tangent([x], [z])
    assert t.dtype == torch.bfloat16
    torch.testing.assert_close(t.double(), reference.tangent(x, z), rtol=0, atol=0.03)


def test_there_is_nothing_to_project_in_an_empty_list() -> None:
    assert project_to_tangent([], []) == []


# The optimizer


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("direction", ["polar", "adam"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_stiefel_equals_the_plain_update(
    direction: Any, nesterov: bool, scaled: bool, dtype: torch.dtype, tolerance: float
) -> None:
    parameters = [nn.Parameter(basis(*shape, seed).to(dtype)) for seed, shape in enumerate(SHAPES)]
    start = [p.detach().clone() for p in parameters]
    gradients = [[torch.randn(shape, dtype=dtype) for shape in SHAPES] for _ in range(4)]
    scales = [torch.rand(columns, dtype=dtype) + 0.5 for _, columns in SHAPES]
    optimizer = Stiefel(parameters, lr=0.1, momentum=0.8, nesterov=nesterov, direction=direction, beta2=0.9)
    for step in gradients:
        for p, gradient, scale in zip(parameters, step, scales, strict=True):
            p.grad = gradient
            if scaled:
                optimizer.column_scale[p] = scale
        optimizer.step()
        assert not optimizer.column_scale
    for i, p in enumerate(parameters):
        scale = scales[i] if scaled else None
        mine = [step[i] for step in gradients]
        plain = reference.stiefel(start[i], mine, 0.1, 0.8, nesterov, direction, 0.9, scale)
        assert float((plain - start[i]).norm()) > 0.1
        torch.testing.assert_close(p.detach().double(), plain, rtol=0, atol=tolerance)


@pytest.mark.parametrize("lr", [0.003, 0.05])
@pytest.mark.parametrize("shape", [(64, 4), (512, 16), (2048, 8), (96, 64)])
def test_with_polar_the_largest_principal_angle_is_the_learning_rate(shape: tuple[int, int], lr: float) -> None:
    x = basis(*shape)
    (gradient,) = project_to_tangent([x], [torch.randn(shape, dtype=torch.float64) * 1e-3])
    p = parameter(x, gradient)
    Stiefel([p], lr=lr).step()
    turned = reference.qr(p.detach())[0]
    assert 0.8 * lr <= math.asin(reference.norm(turned - x @ (x.mT @ turned))) <= 1.25 * lr


@pytest.mark.parametrize("lr", [0.003, 0.05])
@pytest.mark.parametrize("shape", [(64, 4), (512, 16), (2048, 8), (96, 64)])
def test_with_adam_each_column_turns_by_the_learning_rate(shape: tuple[int, int], lr: float) -> None:
    x = basis(*shape)
    (gradient,) = project_to_tangent([x], [torch.randn(shape, dtype=torch.float64) * 1e-3])
    p = parameter(x, gradient)
    Stiefel([p], lr=lr, direction="adam").step()
    turned = p.detach() / p.detach().norm(dim=0)
    angles = torch.asin((turned - x * (x * turned).sum(0)).norm(dim=0))
    assert float(angles.min()) >= 0.8 * lr
    assert float(angles.max()) <= 1.05 * lr


@pytest.mark.parametrize("direction", ["polar", "adam"])
def test_zero_gradients_move_nothing(direction: Any) -> None:
    x = basis(12, 4)
    p = parameter(x, torch.zeros_like(x))
    Stiefel([p], direction=direction).step()
    assert torch.equal(p.detach(), x)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": 0.0}, "lr is an angle in radians and must be"),
        ({"lr": 1.5}, "lr is an angle in radians and must be"),
        ({"momentum": 1.0}, "momentum must be"),
        ({"beta2": -0.1}, "beta2 must be"),
        ({"direction": "newton"}, "direction must be"),
        ({"ns_steps": 0}, "ns_steps must be"),
    ],
)
def test_stiefel_refuses_values_out_of_range(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Stiefel: {message}"):
        Stiefel([nn.Parameter(basis(12, 4))], **wrong)


@pytest.mark.parametrize("shape", [(3,), (3, 8)])
def test_stiefel_refuses_a_parameter_that_is_no_tall_matrix_by_its_name(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"up\.s has the shape \({shape[0]},"):
        Stiefel([("up.U", nn.Parameter(basis(12, 4))), ("up.s", nn.Parameter(torch.ones(shape)))])
