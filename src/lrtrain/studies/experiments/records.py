"""What the runs of an experiment measured, read from their own records: no tracker has to answer."""

import math
from fnmatch import fnmatchcase

import numpy as np

from lrtrain.studies.experiments.definition import LOSS
from lrtrain.studies.jobs.job import Outcome
from lrtrain.tracking.recorded import recorded
from lrtrain.tracking.runs import TrackedRun
from lrtrain.tracking.series import Series


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
    assert run is not None  # it has finished
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
