"""The constraints of a model: those that are asked for, or those that its projections need."""

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from lrtrain.constraints.constraint import Constraint, NothingToHoldError
from lrtrain.constraints.renormalize import SpectralRenormalization
from lrtrain.constraints.retract import StiefelRetraction


def attached(asked: Sequence[Constraint] | None, model: nn.Module, optimizer: Optimizer) -> dict[str, Constraint]:
    """Constraints by class name, attached, in their order; a second of one class has its number behind the name.

    Args:
        asked: The constraints, all there are to be; None for `SpectralRenormalization` of the low-rank pairs whose
            optimizer takes step scales and `StiefelRetraction` of the orthonormal parameters, as far as there are any.
        model: With its parameters as the optimizer has them.
        optimizer: Of all its parameters.

    Raises:
        ValueError: a constraint that was asked for has nothing to hold, or one cannot hold what there is.
    """
    found: dict[str, Constraint] = {}
    for constraint in (SpectralRenormalization(), StiefelRetraction()) if asked is None else asked:
        name = type(constraint).__name__
        try:
            constraint.attach(model, optimizer)
        except NothingToHoldError as error:
            if asked is None:
                continue
            raise ValueError(f"{name}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        same = sum(type(one).__name__ == name for one in found.values())
        found[f"{name}.{same}" if same else name] = constraint
    return found
