"""What the runs of an experiment measured, read from their own records: no tracker has to answer."""

import math
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lrtrain.studies.experiments.definition import LOSS
from lrtrain.studies.jobs.job import Outcome
from lrtrain.tracking.runs import TrackedRun
from lrtrain.tracking.series import Series
from lrtrain.tracking.spool import SPOOL_NAME, records


@lru_cache(maxsize=64)
def recorded(run_dir: Path) -> TrackedRun:
    """A finished run with all points of its metrics; a step that was logged twice has its last value."""
    points: dict[str, dict[int, float]] = {}
    about: dict[str, Any] = {"status": "", "params": {}, "tags": {}}
    times = []
    for _, record in records(run_dir / SPOOL_NAME):
        times.append(record["time"])
        for name, value in record.get("metrics", {}).items():
            points.setdefault(name, {})[record["step"]] = float(value)
        for key in ("params", "tags"):
            about[key] |= record.get(key, {})
        about["status"] = record.get("status", about["status"])
    metrics = {
        name: Series(np.array(sorted(by_step), dtype=np.int64), np.array([by_step[step] for step in sorted(by_step)]))
        for name, by_step in points.items()
    }
    run = f"{run_dir.parent.name}/{run_dir.name}"
    last = {name: float(series.value[-1]) for name, series in metrics.items()}
    return TrackedRun(run, run_dir.parent.name, run, start=times[0], end=times[-1], last=last, metrics=metrics, **about)


def value(outcome: Outcome, metric: str, statistic: str) -> float | None:
    """A statistic of a metric of one run, or of all metrics that a pattern matches.

    `last` is the mean over the matching metrics of their last values, `mean` and `max` are over all their points, and
    `rise` is how far the last value lies above the lowest one. A diverged run has an infinite loss and nothing else, a
    failed one has nothing.

    Raises:
        UserError: the run has no such metric.
    """
    if outcome.status == "diverged" and metric == LOSS:
        return math.inf
    if outcome.status != "finished" or outcome.run_dir is None:
        return None
    run = recorded(outcome.run_dir)
    series = matching(run, metric) or [run.series(metric)]
    if statistic == "last":
        return float(np.mean([one.value[-1] for one in series]))
    if statistic == "rise":
        return float(np.mean([one.value[-1] - one.value.min() for one in series]))
    values = np.concatenate([one.value for one in series])
    return float(values.max() if statistic == "max" else values.mean())


def matching(run: TrackedRun, pattern: str) -> list[Series]:
    """The series of the metrics that a pattern matches."""
    return [series for name, series in run.metrics.items() if fnmatchcase(name, pattern)]
