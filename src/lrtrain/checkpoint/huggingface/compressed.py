"""Projections of lower rank, by a rank or by a share of the energy, as they leave."""

from dataclasses import dataclass
from typing import Any

from lrtrain.nn import Decoder
from lrtrain.nn.factorized import FactorizedProjection
from lrtrain.nn.noted_ranks import KINDS
from lrtrain.nn.projection import projections
from lrtrain.nn.rewriting import as_factors, factors
from lrtrain.runtime.errors import UserError


@dataclass(frozen=True)
class Truncation:
    """How many of all projections have a lower rank now, and the mean rank of these before and after."""

    changed: int
    of: int
    before: float
    after: float


def truncate(decoder: Decoder, rank: int | None, energy: float | None) -> Truncation:
    """Replaces projections by their best approximations of a rank, or that hold a share of Σσ², one after another.

    Spectral ones stay spectral, the others become low-rank. A dense one stays where its factors would be more numbers
    than it has; a factorized one whose rank is no larger stays.

    Raises:
        UserError: not exactly one of the two is given, a value is out of range, a weight is not finite, or nothing
            changes.
    """
    check_truncation(rank, energy)
    found = projections(decoder)
    before, after = [], []
    for name, one in found.items():
        try:
            old, new = _shortened(one, rank, energy)
        except ValueError as error:
            raise UserError(f"export: {name}: {error}; name an earlier checkpoint") from error
        if new is None:
            continue
        parent, _, last = name.rpartition(".")
        setattr(decoder.get_submodule(parent), last, new)
        before.append(old)
        after.append(new.rank)
    if not before:
        asked = f"--truncate-rank {rank}" if energy is None else f"--energy {energy:g}"
        raise UserError(f"{asked}: none of the {len(found)} projections would have fewer numbers; give less")
    return Truncation(len(before), len(found), sum(before) / len(before), sum(after) / len(after))


def check_truncation(rank: int | None, energy: float | None) -> None:
    """Raises UserError unless exactly one of the two is given, and in range."""
    if (rank is None) == (energy is None):
        raise UserError("give either --truncate-rank or --energy, not both")
    if rank is not None and rank < 1:
        raise UserError(f"--truncate-rank {rank}: must be at least 1")
    if energy is not None and not 0 < energy <= 1:
        raise UserError(f"--energy {energy:g}: must be in (0, 1], a share of the sum of squared singular values")


def _shortened(one: Any, rank: int | None, energy: float | None) -> tuple[int, FactorizedProjection | None]:
    """The rank of a projection, and another with a lower one; None where that has no fewer numbers."""
    kept = factors(one)
    kind, old = "low_rank", min(one.out_features, one.in_features)
    if kept is not None:
        kind, old = kept[0], next(iter(kept[1].values())).shape[1]

    def is_less(rank: int) -> bool:
        numbers = rank * (one.out_features + one.in_features)
        return rank < old if kept is not None else numbers < one.out_features * one.in_features

    if rank is not None and not is_less(min(rank, old)):
        return old, None
    new, _ = as_factors(one, KINDS[kind], rank, energy)
    return old, new.eval() if is_less(new.rank) else None
