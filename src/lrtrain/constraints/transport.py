"""Gradients and momenta brought to the tangent space of the Stiefel manifold."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lrtrain.linalg import local, tangent
from lrtrain.optim.protocol import UnstatedError, holders, moments


def transport(optimizer: Optimizer, parameters: Sequence[Tensor]) -> None:
    """Carries the first moments to the tangent spaces at the present parameters: M ← M − X sym(XᵀM).

    Vector transport by projection (Absil, Mahony, Sepulchre, section 8.1.3). The average of the squares belongs to
    coordinates and not to a tangent space, so it stays.

    Raises:
        UnstatedError: a parameter that has been stepped has no first moment, or one that is not stated.
    """
    found = moments(optimizer, parameters, "first_moments")
    for index in {i for i, p in enumerate(parameters) if p.grad is not None} - {i for i, _ in found}:
        name = type(holders(optimizer)[parameters[index]]).__name__
        raise UnstatedError(f"{name} keeps no first moment, so there is none to transport; leave transport out")
    project([(parameters[index], moment) for index, moment in found])


@torch.no_grad()
def project(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Z ← Z − X sym(XᵀZ) in place, for pairs (X, Z)."""
    if pairs:
        projected = tangent([x for x, _ in pairs], [z for _, z in pairs])
        torch._foreach_copy_([local(z) for _, z in pairs], [local(z) for z in projected])
