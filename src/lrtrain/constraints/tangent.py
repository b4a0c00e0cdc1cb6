"""Gradients in the tangent space of the Stiefel manifold."""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrtrain.constraints.constraint import NO_SPECTRAL, Constraint, NothingToHoldError
from lrtrain.constraints.structure import structure
from lrtrain.constraints.transport import project
from lrtrain.linalg.flops import tangent_flops


class TangentProjection(Constraint):
    """Before clipping and the update, projects the gradients: G ← G − X sym(XᵀG).

    What is removed would leave the manifold, and the retraction would turn it into a rotation of the basis. A parameter
    without a gradient is passed over.
    """

    def __init__(self) -> None:
        self.parameters: dict[str, Tensor] = {}

    def attach(self, model: nn.Module, optimizer: Optimizer) -> None:
        _, parameters = structure(model)
        if not parameters:
            raise NothingToHoldError(NO_SPECTRAL)
        self.hold(parameters)

    def hold(self, parameters: Mapping[str, Tensor]) -> Self:
        """Holds name -> X (features, k) of orthonormal columns."""
        self.parameters = dict(parameters)
        return self

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        """Projects every gradient in place."""
        project([(p, p.grad) for p in self.parameters.values() if p.grad is not None])

    def step_flops(self, optimizer: Optimizer) -> int:
        return sum(tangent_flops(*parameter.shape) for parameter in self.parameters.values())
