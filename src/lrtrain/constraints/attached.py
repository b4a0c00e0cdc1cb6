"""The constraints of a model: those that are asked for, or those that its projections need."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from torch import nn
from torch.optim import Optimizer

from lrtrain.constraints.constraint import Constraint, NothingToHoldError
from lrtrain.constraints.factors import find_factors
from lrtrain.constraints.manifold import StiefelRetraction
from lrtrain.constraints.renormalize import SpectralRenormalization
from lrtrain.optim.protocol import holders

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


def uncovered(
    asked: Sequence[Constraint] | None, found: Mapping[str, Constraint], model: nn.Module, optimizer: Optimizer
) -> list[str]:
    """A line for what step scales are asked for, by a list or by an optimizer that takes them, and not given."""
    renormalized = {name: one for name, one in found.items() if isinstance(one, SpectralRenormalization)}
    held = {factor for one in renormalized.values() for pair in one.held.values() for factor in pair}
    pairs, _ = find_factors(model)
    lines = []
    for name, constraint in renormalized.items() if asked else ():
        if rest := [pair for pair in pairs if pair not in constraint.held]:
            number = f"{len(constraint.held)} of {len(pairs)} pairs A, B"
            lines.append(f"{name} holds {number}: the optimizer of {_some(rest)} takes no step scales")
    if asked is None or renormalized:
        scaled = holders(optimizer, "step_scale")
        names = [name for name, parameter in model.named_parameters() if parameter in scaled and parameter not in held]
        if names:
            kind = type(next(iter(scaled.values()))).__name__
            number = f"{len(names)} of {len(scaled)} parameters of {kind} get no step scale"
            lines.append(f"{number} and move by the learning rate itself: {_some(names)} belong to no pair A, B")
    return lines


def _some(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


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
