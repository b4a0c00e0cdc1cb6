"""What optimizers of matrices share: the step around the update, and averages that start at zero."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lrtrain.linalg import local, polar, with_local


class MatrixOptimizer(Optimizer, ABC):
    """Averages each gradient, M ← β M + (1 − β) G; a subclass says in `update` what becomes of it.

    What constraints put into `scales` before a step is used up by it.

    Args:
        params: Matrices, or parameter groups of them; plain tensors or DTensors with `Shard(0)`.
        values: Defaults of the groups, `lr`, `momentum` (β), `nesterov` and `ns_steps` among them.

    Raises:
        ValueError: a value out of range, or a parameter that is not such a matrix or is sharded by columns.
    """

    first_moments = ("momentum",)
    tall = False
    """Whether matrices with more columns than rows are refused."""

    def __init__(self, params: Iterable[Any], values: dict[str, Any]) -> None:
        super().__init__(params, values)
        self.scales: dict[Tensor, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles; torch's own leaves out what a subclass adds."""
        return {**super().__getstate__(), "scales": self.scales}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as the constructor does for each of its own, or refuses it and stays as it was."""
        super().add_param_group(param_group)
        try:
            self.check(self.param_groups[-1])
        except ValueError:
            del self.param_groups[-1]
            raise

    def check(self, group: dict[str, Any]) -> None:
        """Raises ValueError where a group has a value out of range or a parameter that cannot be held."""
        kind = type(self).__name__
        for name in ("momentum", "beta2"):
            if not 0 <= group.get(name, 0) < 1:
                raise ValueError(f"{kind}: {name} must be in [0, 1), got {group[name]}")
        if group["ns_steps"] < 1:
            raise ValueError(f"{kind}: ns_steps must be at least 1, got {group['ns_steps']}")
        names = group.get("param_names", ["a parameter"] * len(group["params"]))
        for name, parameter in zip(names, group["params"], strict=True):
            if parameter.ndim != 2 or (self.tall and parameter.shape[0] < parameter.shape[1]):
                raise ValueError(
                    f"{kind} takes {'tall ' * self.tall}matrices, but {name} has the shape {tuple(parameter.shape)}: "
                    "give it to another optimizer (overrides)"
                )
            if not parameter.is_floating_point():
                raise ValueError(f"{kind} takes matrices of real numbers, but {name} holds {parameter.dtype}")
            local(parameter)  # refuses columns

    @abstractmethod
    def update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Changes the parameters, all of which have a gradient, under the settings of their group."""

    def averages(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Keys of the state of each parameter in a group."""
        return self.first_moments

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Runs the closure, which computes the gradients, then one update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:  # the state of every parameter, with or without a gradient
            for parameter in group["params"]:
                for name in self.averages(group):
                    if name not in self.state[parameter]:
                        self.state[parameter][name] = torch.zeros_like(parameter)
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if any(parameter.grad.is_sparse for parameter in parameters if parameter.grad is not None):
                raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
            if parameters:
                self.update(parameters, group)
        self.scales.clear()
        return loss

    def averaged(self, parameters: list[Tensor], group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        """Advances M; returns the local rows of G, and of M or of Nesterov's look-ahead β M + (1 − β) G."""
        momenta = [local(self.state[parameter]["momentum"]) for parameter in parameters]
        gradients = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        if group["nesterov"]:
            return gradients, list(torch._foreach_lerp(gradients, momenta, group["momentum"]))
        return gradients, momenta

    def polar_factors(self, rows: list[Tensor], parameters: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """The local rows of the polar factors of matrices laid out as the parameters, from their local rows."""
        whole = [with_local(update, parameter) for update, parameter in zip(rows, parameters, strict=True)]
        coefficients, precision = group.get("coefficients", "paper"), group.get("precision", "float32")
        return [local(factor) for factor in polar(whole, group["ns_steps"], coefficients, precision)]


def factor_decay(kind: str, group: dict[str, Any]) -> float:
    """s = √(1 − λ η), by which decay shrinks each factor, so that their product shrinks by 1 − λ η.

    Raises:
        ValueError: a negative number, or λ η of at least 1.
    """
    rate, decay = float(group["lr"]), float(group["weight_decay"])
    if not (rate >= 0 and decay >= 0 and rate * decay < 1):
        raise ValueError(
            f"{kind}: lr and weight_decay must not be negative and their product below 1, got {rate} and {decay}"
        )
    return float((1 - rate * decay) ** 0.5)
