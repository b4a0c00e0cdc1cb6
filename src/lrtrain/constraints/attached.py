"""The constraints of a model: those that are asked for, or those that its projections need."""

from collections.abc import Sequence
from contextlib import suppress

from torch import nn
from torch.optim import Optimizer

from lrtrain.constraints.constraint import Constraint, NothingToHoldError
from lrtrain.constraints.manifold import StiefelRetraction
from lrtrain.constraints.renormalize import SpectralRenormalization

NEEDED = (SpectralRenormalization, StiefelRetraction)
"""What projections need: the low-rank pairs whose optimizer takes step scales, and the orthonormal parameters."""


def attached(asked: Sequence[Constraint] | None, model: nn.Module, optimizer: Optimizer) -> dict[str, Constraint]:
    """Constraints by class name, attached, in their order; a second of one class has its number behind the name.

    Args:
        asked: The constraints, all there are to be; None for those of `NEEDED` that have anything to hold.
        model: With its parameters as the optimizer has them.
        optimizer: Of all its parameters.

    Raises:
        ValueError: a constraint that was asked for has nothing to hold, or one cannot hold what there is.
    """
    found: dict[str, Constraint] = {}
    for constraint in [make() for make in NEEDED] if asked is None else asked:
        name = type(constraint).__name__
        try:
            constraint.attach(model, optimizer)
        except ValueError as error:
            if asked is None and isinstance(error, NothingToHoldError):
                continue
            raise ValueError(f"{name}: {error}") from error
        same = sum(type(one).__name__ == name for one in found.values())
        found[f"{name}.{same}" if same else name] = constraint
    return found


def left_out(asked: Sequence[Constraint], model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Names of those of `NEEDED` that would hold something and that a list lacks, with none that stands in for them."""
    there = {name for constraint in asked for name in (type(constraint).__name__, constraint.stands_in_for)}
    missing = []
    for make in NEEDED:
        if make.__name__ not in there:
            with suppress(ValueError):
                make().attach(model, optimizer)
                missing.append(make.__name__)
    return missing
