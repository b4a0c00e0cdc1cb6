"""The points of tracked metrics as arrays: from an MLflow database in one query a run, else through MLflow's client."""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
INFINITY = 1.7976931348623157e308  # what MLflow's database keeps of an infinity


@dataclass(frozen=True)
class Series:
    """The points of one metric: `step` (n,) int64, strictly increasing, and `value` (n,) float64."""

    step: np.ndarray
    value: np.ndarray


def read_series(client: "MlflowClient", uri: str, keys: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Series]]:
    """The series of the metrics `keys[run id]`, by run id and metric.

    A step that was logged twice (by a resumed run) has its last value. Raises what MLflow and its database raise.
    """
    return from_database(uri, keys) if uri.split(":")[0].split("+")[0] in DATABASES else from_client(client, keys)


def from_database(uri: str, keys: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Series]]:
    """Reads MLflow's table of metrics itself: MLflow would make an object of every point.

    The order is that of the table's index over run, key and step, which makes the database read by that index.
    """
    from mlflow.store.db.utils import create_sqlalchemy_engine
    from sqlalchemy import case, column, select, table

    columns: list[Any] = [column(name) for name in ("run_uuid", "key", "step", "value", "is_nan", "timestamp")]
    run_id, key, step, value, is_nan, time = columns
    query = select(key, step, case((is_nan, None), else_=value)).select_from(table("metrics", *columns))
    query = query.order_by(run_id, key, step, time)
    found: dict[str, dict[str, Series]] = {run: {} for run in keys}
    engine = create_sqlalchemy_engine(uri)
    collecting = gc.isenabled()
    gc.disable()  # millions of short-lived rows, none in a cycle: half of the time would go into looking for cycles
    try:
        with engine.connect() as connection:
            for run, wanted in keys.items():
                rows = connection.execute(query.where(run_id == run, key.in_(wanted))).all()
                for name, points in groupby(rows, key=itemgetter(0)):
                    _, steps, values = zip(*points, strict=True)
                    found[run][name] = _series(steps, values)
    finally:
        engine.dispose()
        if collecting:
            gc.enable()
    return found


def from_client(client: "MlflowClient", keys: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Series]]:
    """The same through MLflow's own interface, which a server has too: a call for each metric of each run."""
    found: dict[str, dict[str, Series]] = {run: {} for run in keys}
    for run, wanted in keys.items():
        for key in wanted:
            history = sorted(client.get_metric_history(run, key), key=lambda point: (point.step, point.timestamp))
            found[run][key] = _series([point.step for point in history], [point.value for point in history])
    return found


def number(value: float) -> float:
    """Restores an infinity, which MLflow stores as its largest number."""
    return float(np.copysign(np.inf, value)) if abs(value) == INFINITY else value


def _series(steps: Sequence[int], values: Sequence[float | None]) -> Series:
    step, value = np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)
    last = np.append(step[1:] != step[:-1], True)
    value = np.where(np.abs(value) == INFINITY, np.copysign(np.inf, value), value)
    return Series(step[last], value[last])
