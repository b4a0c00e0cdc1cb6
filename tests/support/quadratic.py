"""A small problem for optimizers: four matrices, their weighted sum of squares, and steps down it."""

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Named = list[tuple[str, Tensor]]


def matrices(*shapes: tuple[int, int], seed: int = 0) -> Named:
    generator = torch.Generator().manual_seed(seed)
    shapes = shapes or ((8, 3), (6, 3), (8, 3), (5, 2))
    return [(f"p{i}", nn.Parameter(torch.randn(*shape, generator=generator))) for i, shape in enumerate(shapes)]


def quadratic(named: Named) -> Tensor:
    return sum((p * (i + 1)).square().sum() for i, (_, p) in enumerate(named))  # type: ignore[return-value]


def closure_of(optimizer: Optimizer, named: Named) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = quadratic(named)
        loss.backward()
        return loss

    return closure


def train(optimizer: Optimizer, named: Named, steps: int) -> None:
    for _ in range(steps):
        optimizer.step(closure_of(optimizer, named))


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
