"""Spectron: averaged momentum, orthogonalised, with a step scale that bounds the update of the product."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lrtrain.linalg import polar


class Spectron(Optimizer):
    """Momentum and orthogonalisation of each factor of W = A Bᵀ.

    For every factor X with gradient G, momentum β and learning rate η:

        M ← β M + (1 − β) G,   O = polar(M)  (O = M with orthogonalize off),   X ← X − η · scale · O.

    With Nesterov's look-ahead, which the paper does not use, O comes from β M + (1 − β) G instead of M.

    `scale` is `step_scale[X]` and 1 where there is none. `constraints.SpectralRenormalization` sets it to
    1/(‖A‖₂ + ‖B‖₂ + 1) before each step, which bounds ‖ΔW‖₂ by about η; a step consumes the scales, so that none is
    used twice. Factors of equal shape are orthogonalised as one batch.

    Args:
        params: Matrices, or parameter groups of them.
        lr: Learning rate η: the bound on ‖ΔW‖₂ of one step, 0 < η ≤ 1.
        momentum: β of the average, 0 ≤ β < 1.
        nesterov: Look one step of the momentum ahead.
        orthogonalize: Use the polar factor of the momentum; off, the momentum itself.
        ns_steps: Newton–Schulz steps, at least 1.

    Raises:
        ValueError: a value out of range, or a parameter that is not a matrix.

    Source: Spectron, arXiv 2602.12429, Algorithms 1 to 3.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.05,
        momentum: float = 0.95,
        nesterov: bool = False,
        orthogonalize: bool = True,
        ns_steps: int = 5,
    ) -> None:
        if not 0 < lr <= 1:
            raise ValueError(f"Spectron: lr must be in (0, 1], since it bounds the norm of one update, got {lr}")
        if not 0 <= momentum < 1:
            raise ValueError(f"Spectron: momentum must be in [0, 1), got {momentum}")
        if ns_steps < 1:
            raise ValueError(f"Spectron: ns_steps must be at least 1, got {ns_steps}")
        values = {"lr": lr, "momentum": momentum, "nesterov": nesterov}
        super().__init__(params, {**values, "orthogonalize": orthogonalize, "ns_steps": ns_steps})
        for group in self.param_groups:
            names = group.get("param_names", ["a parameter"] * len(group["params"]))
            for name, parameter in zip(names, group["params"], strict=True):
                if parameter.ndim != 2:
                    raise ValueError(
                        f"Spectron takes matrices, but {name} has the shape {tuple(parameter.shape)}: "
                        "give it to another optimizer (overrides)"
                    )
        self.step_scale: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Runs the closure, which computes the gradients, then one update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._create_state()
        for group in self.param_groups:
            by_shape: dict[tuple[torch.Size, torch.device], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape, parameter.device].append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)
        self.step_scale.clear()
        return loss

    def _create_state(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if "momentum" not in self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One update of factors of equal shape."""
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"]) if group["nesterov"] else momenta
        if group["orthogonalize"]:
            updates = polar(torch.stack(updates), steps=group["ns_steps"]).unbind()
        scales = [self.step_scale.get(parameter) for parameter in parameters]
        updates = [
            update if scale is None else update * scale.to(update.dtype)
            for update, scale in zip(updates, scales, strict=True)
        ]
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])
