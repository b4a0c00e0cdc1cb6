"""What torch's own optimizers are tested for: copies, groups, tensors as rates, odd matrices, compilation."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lrtrain.constraints import SpectralRenormalization
from lrtrain.optim import CombinedOptimizer, Spectron, Stiefel

MATRICES = [Spectron, Stiefel]
every_matrix_optimizer = pytest.mark.parametrize("cls", MATRICES)


def parameters(*shapes: tuple[int, int], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """Random matrices with random gradients."""
    made = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    for parameter in made:
        parameter.grad = torch.randn_like(parameter)
    return made


def held(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def pickled(x: Any) -> Any:
    return pickle.loads(pickle.dumps(x))


def combined(named: list[tuple[str, nn.Parameter]]) -> CombinedOptimizer:
    return CombinedOptimizer([Spectron(named[:2], lr=0.1, strict=True), AdamW(named[2:], lr=0.1)])


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize(
    "make",
    [
        lambda named: Spectron(named, lr=0.1, strict=True),
        lambda named: Stiefel(named, lr=0.1, direction="adam"),
        combined,
    ],
)
def test_a_copy_continues_as_the_original(
    make: Callable[[list[tuple[str, nn.Parameter]]], Optimizer], copied: Callable[[Any], Any]
) -> None:
    named = list(zip("abc", parameters((8, 3), (6, 3), (8, 3)), strict=True))
    optimizer = make(named)

    def prepare() -> None:
        scales: Any = getattr(optimizer, "optimizers", [optimizer])[0]
        for scale in ("step_scale", "column_scale"):
            if hasattr(scales, scale):
                getattr(scales, scale).update({p: torch.rand(()) for p in held(scales)})

    for _ in range(2):
        prepare()
        optimizer.step()
    prepare()  # a copy between a constraint and the step has the scales, too
    other = copied(optimizer)
    for mine, theirs in zip(held(optimizer), held(other), strict=True):
        theirs.grad = mine.grad.clone()  # type: ignore[union-attr]
    optimizer.step()
    other.step()
    assert all(torch.equal(a, b) and a is not b for a, b in zip(held(optimizer), held(other), strict=True))
    assert repr(other) == repr(optimizer)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_constraint_scales_the_copy_and_not_the_original(copied: Callable[[Any], Any]) -> None:
    optimizer = copied(Spectron(parameters((8, 3), (6, 3)), strict=True))
    a, b = held(optimizer)
    SpectralRenormalization().hold({"layer": (a, b)}).before_step(optimizer)
    assert optimizer.strict
    assert optimizer.step_scale.keys() == {a, b}


@every_matrix_optimizer
@pytest.mark.parametrize("shapes", [((24, 6), (12, 6)), ((9, 4), (6, 6))])
def test_a_compiled_step_is_the_step(cls: type, shapes: tuple[tuple[int, int], ...]) -> None:
    torch._dynamo.reset()
    plain = cls(parameters(*shapes), lr=0.1)
    optimizer = copy.deepcopy(plain)
    for mine, theirs in zip(held(plain), held(optimizer), strict=True):
        theirs.grad = mine.grad.clone()  # type: ignore[union-attr]
    step = torch.compile(optimizer.step, backend="aot_eager")
    for _ in range(2):
        plain.step()
        step()
    torch.testing.assert_close(held(optimizer), held(plain))


@every_matrix_optimizer
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"params": [nn.Parameter(torch.randn(5))]}, "matrices"),
        ({"params": [("w", nn.Parameter(torch.randn(5, 2, dtype=torch.complex64)))]}, "w holds torch.complex64"),
        ({"params": parameters((5, 2)), "lr": 1.5}, "lr"),
        ({"params": parameters((5, 2)), "lr": torch.tensor(0.0)}, "lr"),
        ({"params": parameters((5, 2)), "momentum": 1.0}, "momentum"),
        ({"params": parameters((5, 2)), "ns_steps": 0}, "ns_steps"),
    ],
)
def test_a_group_is_checked_when_it_is_added_as_in_the_constructor(
    cls: type, wrong: dict[str, Any], message: str
) -> None:
    named = isinstance(wrong["params"][0], tuple)
    first: Any = parameters((4, 2))
    optimizer = cls([("first", *first)] if named else first)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group(dict(wrong))
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match=message):
        cls([dict(wrong)])


@pytest.mark.parametrize(
    ("cls", "wrong"), [(Spectron, {"precision": "float16"}), (Stiefel, {"direction": "up"}), (Stiefel, {"beta2": 1.0})]
)
def test_a_group_s_own_settings_are_checked(cls: type, wrong: dict[str, Any]) -> None:
    optimizer = cls(parameters((4, 2)))
    with pytest.raises(ValueError, match=next(iter(wrong))):
        optimizer.add_param_group({"params": parameters((5, 2)), **wrong})


def test_a_group_is_not_added_to_combined_optimizers_none_of_which_would_step_it() -> None:
    optimizer = combined(list(zip("abc", parameters((8, 3), (6, 3), (8, 3)), strict=True)))
    with pytest.raises(ValueError, match="before they are combined"):
        optimizer.add_param_group({"params": parameters((4, 2))})


@every_matrix_optimizer
def test_every_group_steps_with_its_own_rate_also_when_it_came_later(cls: type) -> None:
    one, two, three = parameters((8, 3), (8, 3), (8, 3))
    before = one.detach().clone()
    for other in (two, three):
        other.data.copy_(before)
        other.grad = one.grad.clone()  # type: ignore[union-attr]
    optimizer = cls([{"params": [one], "lr": 0.1}, {"params": [two]}], lr=0.2)
    optimizer.add_param_group({"params": [three], "lr": 0.4})
    optimizer.step()
    step = before - one.detach()
    torch.testing.assert_close(before - two.detach(), 2 * step)
    torch.testing.assert_close(before - three.detach(), 4 * step)


@every_matrix_optimizer
def test_a_tensor_as_rate_steps_as_a_number_and_is_scheduled(cls: type) -> None:
    number = cls(parameters((8, 3), (6, 3)), lr=0.1)
    tensor = cls([nn.Parameter(p.detach().clone()) for p in held(number)], lr=torch.tensor(0.1))
    schedules = [LambdaLR(optimizer, lambda step: 1 / (step + 1)) for optimizer in (number, tensor)]
    for _ in range(3):
        for mine, theirs in zip(held(number), held(tensor), strict=True):
            theirs.grad = mine.grad.clone()  # type: ignore[union-attr]
        for optimizer, schedule in zip((number, tensor), schedules, strict=True):
            optimizer.step()
            schedule.step()
    torch.testing.assert_close(held(number), held(tensor))
    assert float(tensor.param_groups[0]["lr"]) == pytest.approx(0.025)


@every_matrix_optimizer
def test_dtypes_shapes_and_layouts_may_be_mixed_in_a_group(cls: type) -> None:
    mixed = [
        *parameters((8, 3), (8, 3), (5, 5)),
        *parameters((8, 3), dtype=torch.bfloat16),
        *parameters((8, 3), dtype=torch.float64),
        nn.Parameter(torch.randn(3, 8).mT),
        nn.Parameter(torch.randn(8, 6)[:, ::2]),
    ]
    alone = [nn.Parameter(p.detach().clone()) for p in mixed]
    for one, other in zip(mixed, alone, strict=True):
        one.grad = torch.randn_like(one)
        other.grad = one.grad.clone()
    together = cls(mixed, lr=0.1)
    for _ in range(2):
        together.step()
    for one, other in zip(mixed, alone, strict=True):
        optimizer = cls([other], lr=0.1)
        for _ in range(2):
            optimizer.step()
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("strict", [False, True])
def test_scales_of_another_dtype_serve_every_matrix(strict: bool) -> None:
    optimizer = Spectron([*parameters((8, 3)), *parameters((8, 3), dtype=torch.bfloat16)], lr=0.1, strict=strict)
    kept = [p.detach().clone() for p in held(optimizer)]
    optimizer.step_scale.update({p: torch.tensor(0.5) for p in held(optimizer)})
    optimizer.step()
    assert all(0 < float((p - old).norm()) < 0.2 for p, old in zip(held(optimizer), kept, strict=True))


@every_matrix_optimizer
@pytest.mark.parametrize("shape", [(0, 0), (4, 0)])
def test_an_empty_matrix_is_stepped_over(cls: type, shape: tuple[int, int]) -> None:
    optimizer = cls(parameters(shape, (4, 2)), lr=0.1)
    before = held(optimizer)[1].detach().clone()
    optimizer.step()
    assert held(optimizer)[1].isfinite().all()
    assert not torch.equal(held(optimizer)[1], before)


@every_matrix_optimizer
def test_nothing_happens_without_any_gradient_nor_to_a_frozen_matrix(cls: type) -> None:
    optimizer = cls(parameters((8, 3), (6, 3)), lr=0.1)
    kept = [p.detach().clone() for p in held(optimizer)]
    held(optimizer)[0].requires_grad_(False)
    optimizer.zero_grad()
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(held(optimizer), kept, strict=True))


@every_matrix_optimizer
def test_sparse_gradients_are_refused(cls: type) -> None:
    (parameter,) = parameters((8, 3))
    parameter.grad = torch.eye(8)[:, :3].to_sparse()
    with pytest.raises(RuntimeError, match=f"{cls.__name__} does not support sparse gradients"):
        cls([parameter], lr=0.1).step()
