"""An optimizer of the projections."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class MyOptimizer(torch.optim.Optimizer):
    """Momentum whose every step has the same size.

        V ← β V + (1 − β) G;   W ← W − lr · V / rms(V)

    so that `lr` is the root mean square of one update's entries.

    Args:
        params: What to train, as every torch optimizer takes it.
        lr: Learning rate.
        momentum: β, the average's decay rate.
    """

    # What is known of it from outside. All of it may be left out: then a constraint that moves momenta refuses this
    # optimizer in one line, and `lrtrain plan` measures a step.
    first_moments = ("velocity",)

    def step_flops(self, group: dict[str, Any], parameter: Tensor) -> int:
        return 7 * parameter.numel()

    def __init__(self, params: Iterable[Any], lr: float = 0.003, momentum: float = 0.95) -> None:
        if lr < 0 or not 0 <= momentum < 1:
            raise ValueError(f"lr {lr} must be at least 0 and momentum {momentum} in [0, 1)")
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        # The Trainer computes loss and gradients inside the closure: call it first.
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["velocity"] = torch.zeros_like(parameter)
                velocity = state["velocity"].lerp_(parameter.grad, 1 - group["momentum"])
                size = velocity.square().mean().sqrt().clamp_min(1e-12)
                parameter.sub_(group["lr"] * velocity / size)
        return loss
