"""Retraction to the Stiefel manifold: matrices with orthonormal columns."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lrtrain.constraints.tangent import transport
from lrtrain.linalg import orthonormalize_, pieces

CACHED = 1 << 19
"""Numbers of one batch that a CPU's caches hold: a retraction reads them twice and writes them."""


class StiefelRetraction:
    """After each step, X ← Q of X = Q R with a positive diagonal of R. Equal shapes are handled as one batch.

    Args:
        parameters: name -> X (features, k), plain tensors or row-sharded DTensors.
        transport: Also carry the optimizer's first moments to the new tangent space, M ← M − Q sym(QᵀM).

    Source: SCT, arXiv 2604.00733; the transport is not in the paper.
    """

    def __init__(self, parameters: Mapping[str, Tensor], transport: bool = False) -> None:
        self.parameters = dict(parameters)
        self.transport = transport
        self._optimizer: Optimizer | None = None

    def before_step(self, optimizer: Optimizer) -> None:
        """Takes note of the optimizer that holds the moments."""
        self._optimizer = optimizer

    @torch.no_grad()
    def after_step(self) -> None:
        """Puts every parameter back on the manifold."""
        parameters = list(self.parameters.values())
        for piece in pieces(parameters, CACHED):
            orthonormalize_([parameters[index] for index in piece])
        if self.transport and self._optimizer is not None:
            transport(self._optimizer, parameters)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """There is no state."""
