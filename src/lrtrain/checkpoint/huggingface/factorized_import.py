"""Dense projections of an imported decoder as factors, and what of their energy is lost."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lrtrain.nn import Decoder
from lrtrain.nn.factorized import resolve_rank
from lrtrain.nn.noted_ranks import KINDS
from lrtrain.nn.projection import projections
from lrtrain.nn.rewriting import as_factors
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.table import table

PARTS = ("attention", "mlp")


@dataclass(frozen=True)
class Factorization:
    """What to factorize, and how far; nothing where neither rank, rank_ratio nor energy is given.

    Attributes:
        kind: `low_rank` or `spectral`.
        parts: Of `attention` and `mlp`.
        rank: Of every projection, at most its smaller side; or
        rank_ratio: r = round(rank_ratio · in_features), at most the smaller side; or
        energy: The share of Σσ² that each projection holds; one whose factors would be more numbers stays dense.
    """

    kind: str = "low_rank"
    parts: tuple[str, ...] = PARTS
    rank: int | None = None
    rank_ratio: float | None = None
    energy: float | None = None

    def __bool__(self) -> bool:
        return not self.rank is self.rank_ratio is self.energy is None

    def check(self) -> None:
        """Raises UserError for values out of range, or for more than one of rank, rank ratio and energy."""
        given = {"--rank": self.rank, "--rank-ratio": self.rank_ratio, "--energy": self.energy}
        stated = [name for name, value in given.items() if value is not None]
        if len(stated) > 1:
            raise UserError(f"give only one of {', '.join(given)}, got {' and '.join(stated)}")
        for name, share in (("--rank-ratio", self.rank_ratio), ("--energy", self.energy)):
            if share is not None and not 0 < share <= 1:
                raise UserError(f"{name} {share:g}: must be in (0, 1]")

    def rank_for(self, out_features: int, in_features: int) -> int | None:
        """The rank of a weight (out, in); None where its energy decides."""
        if self.energy is not None:
            return None
        rank = None if self.rank is None else min(self.rank, out_features, in_features)
        return resolve_rank(in_features, out_features, rank, self.rank_ratio)


@dataclass
class Outcome:
    """What became of the projections: name -> rank, None where it stayed dense, and the share of Σσ² lost."""

    ranks: dict[str, int | None] = field(default_factory=dict)
    lost: dict[str, float] = field(default_factory=dict)
    total: float = 0.0

    def as_table(self, energy: bool) -> str:
        """A line a block; the energy that each projection lost, its rank too where ranks differ."""
        blocks: dict[str, dict[str, str]] = {}
        for name, rank in self.ranks.items():
            _, index, part = name.split(".", 2)
            lost = f"{100 * self.lost[name]:.2f} %"
            cell = "dense" if rank is None else f"{rank}: {lost}" if energy else lost
            blocks.setdefault(index, {})[part.partition(".")[2]] = cell
        columns = list(next(iter(blocks.values())))
        return table([["layer", *columns], *([index, *cells.values()] for index, cells in blocks.items())])


def factorize(decoder: Decoder, asked: Factorization, begin: Callable[[str], None]) -> Outcome:
    """Replaces dense projections of a decoder by their best approximations, one after another.

    `begin` is called with the name of each before it is decomposed.

    Raises:
        UserError: no projection would change, or the rank is larger than any smaller side.
    """
    found = {name: one for name, one in projections(decoder).items() if name.split(".")[2] in asked.parts}
    widest = max(min(one.in_features, one.out_features) for one in found.values())
    if asked.rank is not None and asked.rank > widest:
        raise UserError(f"--rank {asked.rank}: the largest rank that a projection of this model has is {widest}")
    outcome = Outcome()
    before = lost = 0.0
    for name in found:
        begin(name)
        parent, _, last = name.rpartition(".")
        dense: Any = decoder.get_submodule(name)
        squares = float(dense.weight.detach().double().square().sum())
        before += squares
        layer, kept = as_factors(
            dense, KINDS[asked.kind], asked.rank_for(dense.out_features, dense.in_features), asked.energy
        )
        if asked.energy is not None and layer.rank * sum(dense.weight.shape) >= dense.weight.numel():
            outcome.ranks[name], outcome.lost[name] = None, 0.0
            continue
        outcome.ranks[name], outcome.lost[name] = layer.rank, 1 - kept.energy
        lost += squares * (1 - kept.energy)
        setattr(decoder.get_submodule(parent), last, layer.eval())
        found[name] = None  # frees the dense weight
    if not any(outcome.ranks.values()):
        raise UserError(
            f"--energy {asked.energy:g}: no projection would have fewer numbers than its dense weight; give less"
        )
    outcome.total = lost / before
    return outcome
