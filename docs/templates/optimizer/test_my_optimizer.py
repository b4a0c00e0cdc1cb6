import pytest
import torch
from my_optimizer import MyOptimizer


def test_every_step_has_the_size_of_the_learning_rate() -> None:
    weight = torch.nn.Parameter(torch.zeros(8, 4))
    optimizer = MyOptimizer([weight], lr=0.1)
    weight.grad = torch.randn(8, 4)
    optimizer.step()
    assert weight.square().mean().sqrt().item() == pytest.approx(0.1, rel=1e-5)


def test_it_goes_down_a_quadratic() -> None:
    weight = torch.nn.Parameter(torch.zeros(8, 4))
    target = torch.randn(8, 4)
    optimizer = MyOptimizer([weight], lr=0.02)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = (weight - target).square().mean()
        value.backward()
        return value

    first = loss().item()
    for _ in range(100):
        last = optimizer.step(loss)
    assert last.item() < first / 10
