"""The comparison table: a row a group, the metric at the end and at the last steps, tokens and FLOPs of all runs."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lrtrain.runtime.units import short
from lrtrain.studies.compare.curves import NAMES, curves_of, reached
from lrtrain.studies.compare.groups import Group

EQUAL = {"steps": "step {}", "tokens": "{} tokens", "flops": "{} FLOPs"}


@dataclass(frozen=True)
class Table:
    """Header, one row of cells a group, and what is missing and why."""

    header: list[str]
    rows: list[list[str]]
    notes: list[str]


def compare(groups: Sequence[Group], metric: str) -> Table:
    """Mean ± sample standard deviation over the runs of each group: of the last value, and at equal budgets.

    An equal budget is the last step, token count or FLOP count that every run has reached; there the value is
    interpolated between the points that were logged. A column that some run cannot have is left out, with a note.

    Raises:
        UserError: a run has no such metric.
    """
    last = [[run.series(metric) for run in group.runs] for group in groups]
    ends = [sorted({int(series.step[-1]) for series in of_group}) for of_group in last]
    columns = {
        "runs": [str(len(group.runs)) for group in groups],
        "last step": [str(end[0]) if len(end) == 1 else f"{end[0]}–{end[-1]}" for end in ends],
        metric: [spread([float(series.value[-1]) for series in of_group]) for of_group in last],
    }
    notes = []
    for axis, title in EQUAL.items():
        curves = curves_of(groups, metric, axis)
        if isinstance(curves, str):
            notes.append(f"no column for equal {NAMES[axis]}: {curves}")
            continue
        budget = reached([c for of_group in curves for c in of_group])
        name = str(int(budget)) if axis == "steps" else short(budget)
        columns[f"at {title.format(name)}"] = [spread([c.at(budget) for c in of_group]) for of_group in curves]
    cells = zip(*columns.values(), strict=True)
    rows = [[group.label, *row] for group, row in zip(groups, cells, strict=True)]
    return Table(["name", *columns], rows, notes)


def spread(values: Sequence[float | None]) -> str:
    """Formats `mean ± sample standard deviation`; the mean alone for one run; – if a run has no value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "–"
    if len(known) == 1 or not np.isfinite(known).all():
        return figure(float(np.mean(known)))
    return f"{figure(statistics.fmean(known))} ± {figure(statistics.stdev(known))}"


def figure(value: float) -> str:
    """Four decimals, as losses have them; three significant digits of what is small or large."""
    return f"{value:.4f}" if 0.1 <= abs(value) < 1e4 else f"{value:.3g}"
