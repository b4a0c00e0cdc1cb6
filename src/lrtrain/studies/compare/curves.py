"""Curves of groups of runs over steps, tokens, FLOPs or time: mean and range, and values at an equal budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from lrtrain.studies.compare.groups import Group
from lrtrain.studies.pages.drawn import Band
from lrtrain.tracking.runs import TrackedRun

AXES = {"steps": "step", "tokens": "throughput/tokens_seen", "flops": "throughput/flops", "time": "throughput/seconds"}
"""Horizontal axes and the metric that runs log for each; every point has a step."""

NAMES = {"steps": "steps", "tokens": "tokens", "flops": "FLOPs", "time": "time"}

BINS = 120
"""Intervals over which a longer curve is averaged for a picture: more would be noise, and hide lines by each other."""


@dataclass(frozen=True)
class Curve:
    """Points (x, y) of one run, x increasing."""

    x: np.ndarray
    y: np.ndarray

    def at(self, x: float) -> float | None:
        """The value at x, interpolated between the points beside it; None outside of them."""
        return float(np.interp(x, self.x, self.y)) if self.x[0] <= x <= self.x[-1] else None


def curve(run: TrackedRun, metric: str, axis: str) -> Curve | None:
    """Returns a metric of a run over an axis, None if the run logged nothing for the axis.

    The axis is interpolated between its logged points, starting at 0 before the first step; points of the metric after
    its last one are dropped.
    """
    series = run.series(metric)
    if axis == "steps":
        return Curve(series.step.astype(np.float64), series.value)
    logged = run.metrics.get(AXES[axis])
    if logged is None:
        return None
    known = np.isfinite(logged.value)
    steps = np.concatenate(([0], logged.step[known]))
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

    More than 2 · `BINS` points are averaged over `BINS` intervals.
    """
    start, end = max(curve.x[0] for curve in curves), reached(curves)
    if start > end:
        return None
    x = np.unique(np.concatenate([curve.x for curve in curves]))
    x = x[(x >= start) & (x <= end)]
    values = np.stack([np.interp(x, curve.x, curve.y) for curve in curves])
    last = float(values[:, -1].mean())
    if len(x) > 2 * BINS:
        first = np.linspace(0, len(x), BINS, endpoint=False).astype(int)
        points = np.diff(np.append(first, len(x)))
        x = np.add.reduceat(x, first) / points
        values = np.add.reduceat(values, first, axis=1) / points
    return Band(label, runs, x, values.mean(axis=0), values.min(axis=0), values.max(axis=0), last)
