"""Gradients and momenta in the tangent space of the Stiefel manifold."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lrtrain.linalg import local, tangent

FIRST_MOMENTS = ("exp_avg", "momentum", "momentum_buffer")
SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq")
"""What the optimizers of torch and of this library call the averages of a gradient and of its squares."""


class TangentProjection:
    """Before clipping and the update, projects the gradients: G ← G − X sym(XᵀG).

    What is removed would leave the manifold, and the retraction would turn it into a rotation of the basis.

    Args:
        parameters: name -> X (features, k) of orthonormal columns; one without a gradient is passed over.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.parameters = dict(parameters)

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        """Projects every gradient in place."""
        project([(p, p.grad) for p in self.parameters.values() if p.grad is not None])

    def after_step(self) -> None:
        """Nothing is left to do after the update."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """There is no state."""


def moments(optimizer: Optimizer, parameters: Sequence[Tensor], names: Sequence[str]) -> Iterator[tuple[int, Tensor]]:
    """(index of the parameter, one of its averages by these names) as far as the optimizer keeps any."""
    for index, parameter in enumerate(parameters):
        state = optimizer.state.get(parameter, {})
        yield from ((index, state[name]) for name in names if isinstance(state.get(name), Tensor))


def transport(optimizer: Optimizer, parameters: Sequence[Tensor]) -> None:
    """Carries the first moments to the tangent spaces at the present parameters: M ← M − X sym(XᵀM).

    Vector transport by projection (Absil, Mahony, Sepulchre, section 8.1.3). The average of the squares belongs to
    coordinates and not to a tangent space, so it stays.
    """
    project([(parameters[index], moment) for index, moment in moments(optimizer, parameters, FIRST_MOMENTS)])


@torch.no_grad()
def project(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Z ← Z − X sym(XᵀZ) in place, for pairs (X, Z)."""
    if pairs:
        projected = tangent([x for x, _ in pairs], [z for _, z in pairs])
        torch._foreach_copy_([local(z) for _, z in pairs], [local(z) for z in projected])
