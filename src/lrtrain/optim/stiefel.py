"""Steps of a given angle for matrices with orthonormal columns."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lrtrain.linalg import local, polar, process_groups, with_local
from lrtrain.linalg.flops import newton_schulz_flops
from lrtrain.linalg.row_sharded import all_reduce
from lrtrain.optim.protocol import LOOK_AHEAD, MOMENTUM, SQUARES

Tensors = list[Tensor] | tuple[Tensor, ...]


class Stiefel(Optimizer):
    """Momentum with a learning rate in radians, for matrices X (m, k) of orthonormal columns.

    With gradient G, momentum β and learning rate η:

        M ← β M + (1 − β) G,   D = direction of M,   X ← X − η D.

    - `polar`: D is the polar factor of M, as in Muon. All directions turn alike: the largest principal angle between
      the spans of the old and the new X is about η.
    - `adam`: D has the columns of M / (√v + ε), each divided by its length, with v ← β₂ v + (1 − β₂) G². Each column
      turns by about η. What Adam's bias corrections would change cancels in that division.

    With Nesterov's look-ahead D comes from β M + (1 − β) G instead of M. The angles hold whatever m and k are; what of
    D lies in the span of X does not turn it. A step leaves the manifold: `constraints.StiefelRetraction` or
    `constraints.FunctionPreservingRetraction` puts X back right after it. Matrices may be row-sharded DTensors.

    With scales c = `column_scale[X]` (k), D comes from M diag(c) and is multiplied by diag(c) again: no angle then.
    `constraints.BalancedRenormalization` sets them so that η bounds ‖ΔW‖₂; a step consumes them.

    Args:
        params: Matrices, or parameter groups of them.
        lr: η in radians, 0 < η ≤ 1.
        momentum: β of the gradient's average, 0 ≤ β < 1.
        nesterov: Look one step of the momentum ahead.
        direction: `polar` or `adam`.
        beta2: β₂ of the average of squares, 0 ≤ β₂ < 1; used by `adam`.
        ns_steps: Newton–Schulz steps, at least 1; used by `polar`.

    Raises:
        ValueError: a value out of range, or a parameter that is not a tall matrix.

    Source: Muon's update (Jordan et al., 2024) on the manifold of SCT (arXiv 2604.00733), which neither combines.
    """

    first_moments = ("momentum",)
    second_moments = ("exp_avg_sq",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        direction: Literal["polar", "adam"] = "polar",
        beta2: float = 0.95,
        ns_steps: int = 5,
    ) -> None:
        if not 0 < lr <= 1:
            raise ValueError(f"Stiefel: lr is an angle in radians and must be in (0, 1], got {lr}")
        for name, value in (("momentum", momentum), ("beta2", beta2)):
            if not 0 <= value < 1:
                raise ValueError(f"Stiefel: {name} must be in [0, 1), got {value}")
        if direction not in ("polar", "adam"):
            raise ValueError(f"Stiefel: direction must be polar or adam, got {direction}")
        if ns_steps < 1:
            raise ValueError(f"Stiefel: ns_steps must be at least 1, got {ns_steps}")
        values = {"lr": lr, "momentum": momentum, "nesterov": nesterov}
        super().__init__(params, {**values, "direction": direction, "beta2": beta2, "ns_steps": ns_steps})
        for group in self.param_groups:
            names = group.get("param_names", ["a parameter"] * len(group["params"]))
            for name, parameter in zip(names, group["params"], strict=True):
                if parameter.ndim != 2 or parameter.shape[0] < parameter.shape[1]:
                    raise ValueError(
                        f"Stiefel takes tall matrices, but {name} has the shape {tuple(parameter.shape)}: "
                        "give it to another optimizer (overrides)"
                    )
        self.column_scale: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Runs the closure, which computes the gradients, then one update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._create_state()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(parameters, group)
        self.column_scale.clear()
        return loss

    def step_flops(self, group: dict[str, Any], parameter: Tensor) -> int:
        """FLOPs of a step of one parameter, as `optim.protocol` asks for them."""
        m, k = parameter.shape
        flops = (MOMENTUM + LOOK_AHEAD * group["nesterov"]) * m * k
        return flops + (
            SQUARES * m * k if group["direction"] == "adam" else newton_schulz_flops(m, k, group["ns_steps"])
        )

    def _create_state(self) -> None:
        for group in self.param_groups:
            names = ("momentum", "exp_avg_sq") if group["direction"] == "adam" else ("momentum",)
            for parameter in group["params"]:
                for name in names:
                    if name not in self.state[parameter]:
                        self.state[parameter][name] = torch.zeros_like(parameter)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One update of the parameters of a group."""
        gradients = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        momenta = [local(self.state[parameter]["momentum"]) for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"]) if group["nesterov"] else momenta
        updates = self._scaled(updates, parameters)
        if group["direction"] == "adam":
            squares = [local(self.state[parameter]["exp_avg_sq"]) for parameter in parameters]
            torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1 - group["beta2"])
            updates = _unit_columns(_over_root(updates, squares), parameters[0])
        else:
            whole = [with_local(update, parameter) for update, parameter in zip(updates, parameters, strict=True)]
            updates = [local(update) for update in polar(whole, steps=group["ns_steps"])]
        torch._foreach_add_([local(p) for p in parameters], self._scaled(updates, parameters), alpha=-group["lr"])

    def _scaled(self, updates: Tensors, parameters: list[Tensor]) -> Tensors:
        """The columns of the updates times their scales, where they have any."""
        scales = [self.column_scale.get(parameter) for parameter in parameters]
        return [
            update if scale is None else update * scale.to(update.dtype)
            for update, scale in zip(updates, scales, strict=True)
        ]


def _over_root(updates: Tensors, squares: Tensors) -> Tensors:
    """M / (√v + ε), with the smallest ε that keeps 0/0 from being NaN."""
    roots = torch._foreach_sqrt(squares)
    torch._foreach_add_(roots, torch.finfo(roots[0].dtype).tiny)
    return torch._foreach_div(updates, roots)


def _unit_columns(updates: Tensors, like: Tensor) -> list[Tensor]:
    """The local rows of matrices laid out as `like`, every column divided by its length; zero columns stay zero."""
    lengths = all_reduce([update.square().sum(0) for update in updates], process_groups(like))
    tiny = torch.finfo(updates[0].dtype).tiny
    return [update * length.clamp_min(tiny).rsqrt() for update, length in zip(updates, lengths, strict=True)]
