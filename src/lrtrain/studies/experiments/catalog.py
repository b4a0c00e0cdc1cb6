"""The list of experiments, with the time that each takes."""

from collections.abc import Sequence

from lrtrain.runtime.table import table
from lrtrain.studies.experiments.definition import Definition

SEARCHED = 4
"""Runs of a usual search: 3 where the first rate is the best, 5 two factors beside it."""

STARTUP = 10.0
"""Seconds of a run before its first step."""


def listing(found: Sequence[Definition]) -> str:
    """A line an experiment; the sum counts a run that several experiments share once."""
    rows = [["experiment", "scale", "time", "claim"]]
    distinct: dict[str, float] = {}
    for one in found:
        own = {one.name: float(one.scale.besides)}
        for variant in one.variants:
            runs = one.scale.seeds + (SEARCHED - 1 if variant.search else 0)
            same = (variant.overlays, variant.settings, variant.equal_flops, one.scale.settings)
            own[str(same)] = minutes(runs, one.scale.seconds)
            if one.kind == "conversion":
                own[f"{same} kept"] = minutes(one.scale.seeds, one.scale.seconds)
        total = f"{sum(own.values()):.0f} min" if any(own.values()) else ""
        rows.append([one.name, one.scale.name, total, one.claim or one.title])
        distinct |= own if one.source else {}
    whole = f"about {sum(distinct.values()):.0f} minutes on two quiet cores with --jobs 2"
    return f"{table(rows, numbers=False)}\n\nall of the papers', shared runs once: {whole}"


def minutes(runs: int, seconds: float, parallel: int = 2) -> float:
    """The time that some runs take, each of `seconds` and its start, `parallel` at a time; 0 where nobody measured."""
    return runs * (seconds + STARTUP) / parallel / 60 if seconds else 0.0
