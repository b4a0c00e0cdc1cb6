"""The table: a group a row, the metric at its end and where all runs have used the same steps, tokens or FLOPs."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lrtrain.studies.compare.curves import AXES, curve, lacking, reached
from lrtrain.studies.compare.groups import Group

NAMES = {"steps": "steps", "tokens": "tokens", "flops": "FLOPs", "time": "time"}
EQUAL = {"steps": "step {}", "tokens": "{} tokens", "flops": "{} FLOPs"}
PREFIXES = {1e18: "E", 1e15: "P", 1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k"}


@dataclass(frozen=True)
class Table:
    """Header, one row of cells a group, and what is missing and why."""

    header: list[str]
    rows: list[list[str]]
    notes: list[str]

    def text(self) -> str:
        """In columns, the first to the left and the others to the right."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = []
        for row in (self.header, *self.rows):
            cells = [f"{row[0]:<{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))]
            lines.append("  ".join(cells))
        return "\n".join(lines)


def compare(groups: Sequence[Group], metric: str) -> Table:
    """Mean ± sample standard deviation over the runs of each group: of the last value, and at equal budgets.

    An equal budget is the last step, token count or FLOP count that every run has reached; there the value is
    interpolated between the points that were logged. A column that some run cannot have is left out, with a note.

    Raises:
        UserError: a run has no such metric.
    """
    last = [[curve(run, metric, "steps") for run in group.runs] for group in groups]
    ends = [sorted({int(c.x[-1]) for c in of_group if c is not None}) for of_group in last]
    columns = {
        "runs": [str(len(group.runs)) for group in groups],
        "last step": [str(end[0]) if len(end) == 1 else f"{end[0]}–{end[-1]}" for end in ends],
        metric: [spread([float(c.y[-1]) for c in of_group if c is not None]) for of_group in last],
    }
    notes = []
    for axis, title in EQUAL.items():
        if missing := lacking(groups, metric, axis):
            notes.append(f"no column for equal {NAMES[axis]}: {some(missing)} logged no {AXES[axis]}")
            continue
        curves = [[c for run in group.runs if (c := curve(run, metric, axis)) is not None] for group in groups]
        budget = reached([c for of_group in curves for c in of_group])
        name = str(int(budget)) if axis == "steps" else short(budget)
        columns[f"at {title.format(name)}"] = [spread([c.at(budget) for c in of_group]) for of_group in curves]
    cells = zip(*columns.values(), strict=True)
    rows = [[group.label, *row] for group, row in zip(groups, cells, strict=True)]
    return Table(["name", *columns], rows, notes)


def spread(values: Sequence[float | None]) -> str:
    """`mean ± sample standard deviation`, the mean alone of one run; – where some run has no value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "–"
    if len(known) == 1 or not np.isfinite(known).all():
        return figure(float(np.mean(known)))
    return f"{figure(statistics.fmean(known))} ± {figure(statistics.stdev(known))}"


def figure(value: float) -> str:
    """Four decimals, as losses have them; three significant digits of what is small or large."""
    return f"{value:.4f}" if 0.1 <= abs(value) < 1e4 else f"{value:.3g}"


def short(value: float) -> str:
    """Three digits and a prefix: 819200 is 819k, 2.2e18 is 2.20E."""
    for size, prefix in PREFIXES.items():
        if value >= size:
            return f"{value / size:.3g}{prefix}"
    return f"{value:.3g}"


def some(names: Sequence[str]) -> str:
    """The first name, and how many more there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
