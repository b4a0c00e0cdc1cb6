"""Retraction to the Stiefel manifold: matrices with orthonormal columns."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lrtrain.linalg import orthonormalize


class StiefelRetraction:
    """After each step, X ← Q of X = Q R with a positive diagonal of R. Equal shapes are handled as one batch.

    Args:
        parameters: name -> X (features, k).

    Source: SCT, arXiv 2604.00733.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.parameters = dict(parameters)

    def before_step(self, optimizer: Optimizer) -> None:
        """Nothing is to be done before the update."""

    @torch.no_grad()
    def after_step(self) -> None:
        """Puts every parameter back on the manifold."""
        by_shape: dict[tuple[torch.Size, torch.device], list[Tensor]] = defaultdict(list)
        for parameter in self.parameters.values():
            by_shape[parameter.shape, parameter.device].append(parameter)
        for parameters in by_shape.values():
            bases, _ = orthonormalize(torch.stack([parameter.detach() for parameter in parameters]))
            torch._foreach_copy_(parameters, list(bases.unbind()))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """There is no state."""
