"""Steps of a given angle for matrices with orthonormal columns."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from lrtrain.linalg import local, process_groups
from lrtrain.linalg.flops import newton_schulz_flops
from lrtrain.linalg.row_sharded import all_reduce
from lrtrain.optim.matrix_optimizer import MatrixOptimizer
from lrtrain.optim.protocol import LOOK_AHEAD, MOMENTUM, SQUARES


class Stiefel(MatrixOptimizer):
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

    second_moments = ("exp_avg_sq",)
    tall = True

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
        values = {"lr": lr, "momentum": momentum, "nesterov": nesterov}
        super().__init__(params, {**values, "direction": direction, "beta2": beta2, "ns_steps": ns_steps})

    def check(self, group: dict[str, Any]) -> None:
        if not 0 < group["lr"] <= 1:
            raise ValueError(f"Stiefel: lr is an angle in radians and must be in (0, 1], got {group['lr']}")
        if group["direction"] not in ("polar", "adam"):
            raise ValueError(f"Stiefel: direction must be polar or adam, got {group['direction']}")
        super().check(group)

    @property
    def column_scale(self) -> dict[Tensor, Tensor]:
        """Parameter (m, k) -> the scales (k) of its columns in the next step."""
        return self.scales

    def step_flops(self, group: dict[str, Any], parameter: Tensor) -> int:
        """FLOPs of a step of one parameter, as `optim.protocol` asks for them."""
        m, k = parameter.shape
        flops = (MOMENTUM + LOOK_AHEAD * group["nesterov"]) * m * k
        return flops + (
            SQUARES * m * k if group["direction"] == "adam" else newton_schulz_flops(m, k, group["ns_steps"])
        )

    def averages(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum", "exp_avg_sq") if group["direction"] == "adam" else ("momentum",)

    def update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients, updates = self.averaged(parameters, group)
        updates = self._scaled(updates, parameters)
        if group["direction"] == "adam":
            squares = [local(self.state[parameter]["exp_avg_sq"]) for parameter in parameters]
            torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1 - group["beta2"])
            updates = _unit_columns(_over_root(updates, squares), parameters[0])
        else:
            updates = self.polar_factors(updates, parameters, group)
        rows = [local(p) for p in parameters]
        torch._foreach_add_(rows, self._scaled(updates, parameters), alpha=-float(group["lr"]))

    def _scaled(self, updates: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
        """The columns of the updates times their scales, where they have any."""
        scales = [self.column_scale.get(parameter) for parameter in parameters]
        return [
            update if scale is None else update * scale.to(update.dtype)
            for update, scale in zip(updates, scales, strict=True)
        ]


def _over_root(updates: list[Tensor], squares: list[Tensor]) -> list[Tensor]:
    """M / (√v + ε), with the smallest ε that keeps 0/0 from being NaN."""
    roots = torch._foreach_sqrt(squares)
    torch._foreach_add_(roots, torch.finfo(roots[0].dtype).tiny)
    return list(torch._foreach_div(updates, roots))


def _unit_columns(updates: list[Tensor], like: Tensor) -> list[Tensor]:
    """The local rows of matrices laid out as `like`, every column divided by its length; zero columns stay zero."""
    lengths = all_reduce([update.square().sum(0) for update in updates], process_groups(like))
    tiny = torch.finfo(updates[0].dtype).tiny
    return [update * length.clamp_min(tiny).rsqrt() for update, length in zip(updates, lengths, strict=True)]
