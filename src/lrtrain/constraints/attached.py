"""The constraints of a model: those that are asked for, or those that its projections need."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from torch import nn
from torch.optim import Optimizer

from lrtrain.constraints.constraint import Constraint, NothingToHoldError
from lrtrain.constraints.factors import find_factors
from lrtrain.constraints.manifold import StiefelRetraction
from lrtrain.constraints.partner_metric import PartnerMetric
from lrtrain.constraints.renormalize import SpectralRenormalization
from lrtrain.optim.protocol import Takes, holders

NEEDED = (SpectralRenormalization, PartnerMetric, StiefelRetraction)
"""What projections need: the low-rank pairs whose optimizer takes step scales, or the metric of the other factor, and
the orthonormal parameters."""


GIVEN: tuple[tuple[type[Constraint], Takes, str], ...] = (
    (SpectralRenormalization, "step_scale", "step scale"),
    (PartnerMetric, "partner_root", "root of the other factor"),
)
"""Constraints that give pairs something before a step: to optimizers that take it under a name, and what it is."""


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
    """A line for what pairs are given before a step, by a list or for an optimizer that takes it, and some are not."""
    pairs, _ = find_factors(model)
    lines = []
    for make, takes, given in GIVEN:
        giving = {name: one for name, one in found.items() if isinstance(one, make)}
        held = {factor for one in giving.values() for pair in one.held.values() for factor in pair}
        for name, constraint in giving.items() if asked else ():
            if rest := [pair for pair in pairs if pair not in constraint.held]:
                number = f"{len(constraint.held)} of {len(pairs)} pairs A, B"
                lines.append(f"{name} holds {number}: the optimizer of {_some(rest)} takes no {given}s")
        if asked is None or giving:
            taking = holders(optimizer, takes)
            named = model.named_parameters()
            if names := [name for name, parameter in named if parameter in taking and parameter not in held]:
                kind = type(next(iter(taking.values()))).__name__
                number = f"{len(names)} of {len(taking)} parameters of {kind} get no {given}"
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
