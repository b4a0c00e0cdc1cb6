"""The Stiefel manifold of matrices with orthonormal columns: its tangent spaces, and the way back to it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrtrain.constraints.constraint import NO_SPECTRAL, Constraint, NothingToHoldError
from lrtrain.constraints.factors import find_factors
from lrtrain.linalg import local, orthonormalize_, project_to_tangent
from lrtrain.linalg.flops import retraction_flops, tangent_flops
from lrtrain.optim.protocol import UnstatedError, holders, moments, require_moments


class _OrthonormalColumns(Constraint):
    """Holds name -> X (features, k) of orthonormal columns, plain tensors or row-sharded DTensors."""

    held: dict[str, Tensor]

    def attach(self, model: nn.Module, optimizer: Optimizer) -> None:
        _, parameters = find_factors(model)
        if not parameters:
            raise NothingToHoldError(NO_SPECTRAL)
        self.hold(parameters)


class StiefelRetraction(_OrthonormalColumns):
    """After each step, X ← Q of X = Q R with a positive diagonal of R. Equal shapes are handled as one batch.

    Args:
        transport: Also carry the optimizer's first moments to the new tangent space, M ← M − Q sym(QᵀM).

    Source: SCT, arXiv 2604.00733; the transport is not in the paper.
    """

    def __init__(self, transport: bool = False) -> None:
        self.transport = transport
        self._optimizer: Optimizer | None = None

    def attach(self, model: nn.Module, optimizer: Optimizer) -> None:
        super().attach(model, optimizer)
        if self.transport:
            require_moments(optimizer, self.held, "first_moments")

    def before_step(self, optimizer: Optimizer) -> None:
        """Takes note of the optimizer that holds the moments."""
        self._optimizer = optimizer

    @torch.no_grad()
    def after_step(self) -> None:
        """Puts every parameter back on the manifold."""
        parameters = list(self.held.values())
        orthonormalize_(parameters)
        if self.transport and self._optimizer is not None:
            transport(self._optimizer, parameters)

    def step_flops(self, optimizer: Optimizer) -> int:
        shapes = [parameter.shape for parameter in self.held.values()]
        return sum(retraction_flops(m, k) + self.transport * tangent_flops(m, k) for m, k in shapes)


class TangentProjection(_OrthonormalColumns):
    """Before clipping and the update, projects the gradients: G ← G − X sym(XᵀG).

    What is removed would leave the manifold, and the retraction would turn it into a rotation of the basis. A parameter
    without a gradient is passed over.
    """

    def before_step(self, optimizer: Optimizer) -> None:
        """Projects every gradient in place."""
        _project([(p, p.grad) for p in self.held.values() if p.grad is not None])

    def step_flops(self, optimizer: Optimizer) -> int:
        return sum(tangent_flops(*parameter.shape) for parameter in self.held.values())


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
    _project([(parameters[index], moment) for index, moment in found])


@torch.no_grad()
def _project(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Z ← Z − X sym(XᵀZ) in place, for pairs (X, Z)."""
    if pairs:
        projected = project_to_tangent([x for x, _ in pairs], [z for _, z in pairs])
        torch._foreach_copy_([local(z) for _, z in pairs], [local(z) for z in projected])
