"""A user's own constraint and optimizers, named by class path in a YAML."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from lrtrain.constraints import Constraint, NothingToHoldError, find_factors


class UnitColumns(Constraint):
    """After each step, gives every column of the factors the same length."""

    def __init__(self, length: float = 1.0) -> None:
        self.length = length
        self.steps = 0
        self.factors: list[Tensor] = []

    def attach(self, model: nn.Module, optimizer: Optimizer) -> None:
        pairs, _ = find_factors(model)
        self.factors = [factor for pair in pairs.values() for factor in pair]
        if not self.factors:
            raise NothingToHoldError("the model has no factors; use lrtrain.nn.LowRankLinear or leave it out")

    @torch.no_grad()
    def after_step(self) -> None:
        self.steps += 1
        for factor in self.factors:
            factor.mul_(self.length / factor.norm(dim=0).clamp_min(1e-12))

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps = state_dict["steps"]


class Velocity(Optimizer):
    """V ← β V + G, X ← X − η V: a momentum under a name of its own, and nothing stated."""

    def __init__(self, params: Iterable[Any], lr: float = 0.01, momentum: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state["velocity"] = torch.zeros_like(parameter)
                    state["velocity"].mul_(group["momentum"]).add_(parameter.grad)
                    parameter.sub_(state["velocity"], alpha=group["lr"])
        return loss


class StatedVelocity(Velocity):
    first_moments = ("velocity",)
    second_moments = ()

    def step_flops(self, group: dict[str, Any], parameter: Tensor) -> int:
        return 4 * parameter.numel()


class MisstatedVelocity(Velocity):
    first_moments = ("momentum",)
    second_moments = ()


class OwnAdamW(AdamW):
    """torch's, but for its class: what torch's would state is not said of it."""


class Eigen(Velocity):
    """Takes an operator whose FLOPs nobody knows."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                torch.linalg.qr(parameter.detach() @ parameter.detach().mT)
        return loss


class Stubborn(Velocity):
    """Looks at a number of its parameters, as no parameter without numbers allows."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.detach().numpy()
        return super().step(closure)
