"""Steps inside the backward pass: the same updates, with the gradients of one optimizer at a time."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from lrtrain.constraints import StiefelRetraction, find_factors
from lrtrain.linalg import orthonormality_error
from lrtrain.nn import SpectralLinear
from lrtrain.optim import step_in_backward

STEPS = 3


def spectral_stack() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Sequential(SpectralLinear(12, 12, rank=4), nn.RMSNorm(12)) for _ in range(3)])


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - 1).square().mean()


def batches() -> list[Tensor]:
    return list(torch.randn(STEPS, 5, 12, generator=torch.Generator().manual_seed(1)))


def optimizers_with_retraction(model: nn.Sequential) -> list[AdamW]:
    optimizers = []
    for block in model:
        optimizer = AdamW(block.parameters(), lr=0.03)
        retraction = StiefelRetraction().hold(find_factors(block)[1])
        optimizer.register_step_post_hook(lambda *_, retraction=retraction: retraction.after_step())
        optimizers.append(optimizer)
    return optimizers


def test_the_updates_are_those_of_steps_after_the_backward_pass() -> None:
    inside = spectral_stack()
    after = deepcopy(inside)
    step_in_backward(optimizers_with_retraction(inside))
    optimizers = optimizers_with_retraction(after)
    for x in batches():
        loss(inside, x).backward()
        loss(after, x).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for (name, p), q in zip(inside.named_parameters(), after.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert all(orthonormality_error(x) < 1e-5 for x in find_factors(inside)[1].values())


def test_the_gradients_of_one_block_exist_at_a_time_and_none_afterwards() -> None:
    model = spectral_stack()
    optimizers = optimizers_with_retraction(model)
    held: list[int] = []
    for optimizer in optimizers:
        optimizer.register_step_pre_hook(lambda *_: held.append(sum(p.grad is not None for p in model.parameters())))
    step_in_backward(optimizers)
    loss(model, batches()[0]).backward()
    assert held == [len(list(block.parameters())) for block in model]
    assert all(p.grad is None for p in model.parameters())


def test_a_parameter_used_in_two_blocks_is_updated_once_with_its_whole_gradient() -> None:
    inside = nn.Linear(4, 4, bias=False)
    after = deepcopy(inside)
    optimizer = SGD(after.parameters(), lr=0.1)
    step_in_backward([SGD(inside.parameters(), lr=0.1)])
    x = torch.ones(2, 4)
    inside(inside(x)).square().sum().backward()
    after(after(x)).square().sum().backward()
    optimizer.step()
    assert torch.equal(inside.weight, after.weight)


def test_a_frozen_parameter_does_not_hold_up_the_step() -> None:
    model = spectral_stack()[0]
    model[1].weight.requires_grad_(False)
    before = model[0].s.detach().clone()
    step_in_backward([SGD(model.parameters(), lr=0.1)])
    loss(model, batches()[0]).backward()
    assert not torch.equal(model[0].s, before)


def test_a_parameter_without_a_gradient_is_reported_in_the_next_pass() -> None:
    used, unused = nn.Linear(3, 3, bias=False), nn.Linear(2, 5, bias=False)
    step_in_backward([SGD([used.weight, unused.weight], lr=0.1)])
    used(torch.ones(1, 3)).sum().backward()
    with pytest.raises(RuntimeError, match=r"\(5, 2\).* had no gradient in the last backward pass"):
        used(torch.ones(1, 3)).sum().backward()


def test_a_parameter_in_two_optimizers_is_refused() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match="belongs to two"):
        step_in_backward([SGD([weight], lr=0.1), SGD([weight], lr=0.1)])


def test_removed_hooks_leave_the_gradients_to_the_user() -> None:
    layer = nn.Linear(3, 3)
    before = layer.weight.detach().clone()
    for handle in step_in_backward([SGD(layer.parameters(), lr=0.1)]):
        handle.remove()
    layer(torch.ones(1, 3)).sum().backward()
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight, before)
