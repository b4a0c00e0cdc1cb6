"""Curves of groups of runs over steps, tokens, FLOPs or time: mean and range, and values at an equal budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from lrtrain.studies.compare.groups import Group
from lrtrain.tracking.runs import TrackedRun

AXES = {"steps": None, "tokens": "throughput/tokens_seen", "flops": "throughput/flops", "time": "throughput/seconds"}
"""Horizontal axes and the metric that runs log for each; steps are MLflow's own."""

NAMES = {"steps": "steps", "tokens": "tokens", "flops": "FLOPs", "time": "time"}

GRID = 20_000
"""Points at most at which the runs of a group are averaged."""

BINS = 120
"""Intervals into which a longer curve is gathered for a picture: more would be noise, and hide one line by the next."""


@dataclass(frozen=True)
class Curve:
    """Points (x, y) of one run, x increasing."""

    x: np.ndarray
    y: np.ndarray

    def at(self, x: float) -> float | None:
        """The value at x, interpolated between the points beside it; None outside of them."""
        return float(np.interp(x, self.x, self.y)) if self.x[0] <= x <= self.x[-1] else None


@dataclass(frozen=True)
class Band:
    """A group's mean, and the lowest and highest of its runs, at points x or around them; `last`: the last mean."""

    label: str
    runs: int
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    last: float


def curve(run: TrackedRun, metric: str, axis: str) -> Curve | None:
    """A metric of a run over an axis; None where the run logged nothing for that axis.

    Between the points at which the axis was logged it is interpolated, from 0 before the first step on; points of the
    metric after its last one are left out.
    """
    series = run.series(metric)
    name = AXES[axis]
    if name is None:
        return Curve(series.step.astype(np.float64), series.value)
    if name not in run.metrics:
        return None
    logged = run.metrics[name]
    known = np.isfinite(logged.value)
    steps = np.concatenate(([-1], logged.step[known]))
    # A resumed run's clock goes on from its checkpoint, which may be a little less than what was logged after it.
    total = np.maximum.accumulate(np.concatenate(([0.0], logged.value[known])))
    x = np.interp(series.step, steps, total, right=np.nan)
    inside = np.isfinite(x)
    return Curve(x[inside], series.value[inside]) if inside.any() else None


def curves_of(groups: Sequence[Group], metric: str, axis: str) -> list[list[Curve]] | str:
    """The curves of each group; or which runs have none over the axis, and why.

    Raises:
        UserError: a run has no such metric.
    """
    found = [[curve(run, metric, axis) for run in group.runs] for group in groups]
    runs = [run for group in groups for run in group.runs]
    missing = [run.run_name for run, one in zip(runs, chain(*found), strict=True) if one is None]
    if missing:
        return f"{some(missing)} logged no {AXES[axis]}"
    return [[one for one in of_group if one is not None] for of_group in found]


def some(names: Sequence[str]) -> str:
    """The first name, and how many more there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def reached(curves: Sequence[Curve]) -> float:
    """The last point of the axis that all have reached."""
    return float(min(curve.x[-1] for curve in curves))


def band(label: str, runs: int, curves: Sequence[Curve]) -> Band | None:
    """Mean and range of runs over the part of the axis that all of them cover; None where there is no such part.

    More than 2 · `BINS` points of a run are gathered into the means of `BINS` intervals.
    """
    start, end = max(curve.x[0] for curve in curves), reached(curves)
    if start > end:
        return None
    x = np.unique(np.concatenate([curve.x for curve in curves]))
    x = x[(x >= start) & (x <= end)]
    x = x[np.unique(np.linspace(0, len(x) - 1, GRID).astype(int))]
    values = np.stack([np.interp(x, curve.x, curve.y) for curve in curves])
    last = float(values[:, -1].mean())
    if len(x) > 2 * BINS:
        first = np.linspace(0, len(x), BINS, endpoint=False).astype(int)
        points = np.diff(np.append(first, len(x)))
        x = np.add.reduceat(x, first) / points
        values = np.add.reduceat(values, first, axis=1) / points
    return Band(label, runs, x, values.mean(axis=0), values.min(axis=0), values.max(axis=0), last)
