"""Retraction to the Stiefel manifold: matrices with orthonormal columns."""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrtrain.constraints.constraint import NO_SPECTRAL, Constraint, NothingToHoldError
from lrtrain.constraints.structure import structure
from lrtrain.constraints.transport import transport
from lrtrain.linalg import orthonormalize_
from lrtrain.linalg.flops import retraction_flops, tangent_flops
from lrtrain.optim.protocol import require_moments


class StiefelRetraction(Constraint):
    """After each step, X ← Q of X = Q R with a positive diagonal of R. Equal shapes are handled as one batch.

    Args:
        transport: Also carry the optimizer's first moments to the new tangent space, M ← M − Q sym(QᵀM).

    Source: SCT, arXiv 2604.00733; the transport is not in the paper.
    """

    def __init__(self, transport: bool = False) -> None:
        self.parameters: dict[str, Tensor] = {}
        self.transport = transport
        self._optimizer: Optimizer | None = None

    def attach(self, model: nn.Module, optimizer: Optimizer) -> None:
        _, parameters = structure(model)
        if not parameters:
            raise NothingToHoldError(NO_SPECTRAL)
        if self.transport:
            require_moments(optimizer, parameters, "first_moments")
        self.hold(parameters)

    def hold(self, parameters: Mapping[str, Tensor]) -> Self:
        """Holds name -> X (features, k), plain tensors or row-sharded DTensors."""
        self.parameters = dict(parameters)
        return self

    def before_step(self, optimizer: Optimizer) -> None:
        """Takes note of the optimizer that holds the moments."""
        self._optimizer = optimizer

    @torch.no_grad()
    def after_step(self) -> None:
        """Puts every parameter back on the manifold."""
        parameters = list(self.parameters.values())
        orthonormalize_(parameters)
        if self.transport and self._optimizer is not None:
            transport(self._optimizer, parameters)

    def step_flops(self, optimizer: Optimizer) -> int:
        shapes = [parameter.shape for parameter in self.parameters.values()]
        return sum(retraction_flops(m, k) + self.transport * tangent_flops(m, k) for m, k in shapes)
