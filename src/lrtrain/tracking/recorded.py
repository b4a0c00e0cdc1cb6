"""A run as its own record, `metrics.jsonl`, tells of it: no tracker has to answer."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lrtrain.tracking.course import surviving
from lrtrain.tracking.names import NULL, joined
from lrtrain.tracking.runs import TrackedRun
from lrtrain.tracking.series import Series
from lrtrain.tracking.spool import SPOOL_NAME


def recorded(run_dir: Path) -> TrackedRun | None:
    """The run of a directory as far as its record goes; None without one. Its id and name are the folders'.

    What a resumed session superseded is left out; a step that was logged twice has its last value, in `last` as well.
    `tags`, `params` and `status` are as last written, `start` and `end` the times of the first and the last record.

    Raises:
        UserError: the record is damaged.
    """
    spool = run_dir / SPOOL_NAME
    if not spool.is_file():
        return None
    now = spool.stat()
    return _read(run_dir, now.st_size, now.st_mtime_ns)


def recorded_texts(run_dir: Path) -> dict[str, list[tuple[int | None, str]]]:
    """The texts of a run's record by artifact: (step, text) of each, the step None where it is of none, oldest first.

    What a resumed session superseded is left out, as in `recorded`; a text of a step that was written again is the
    later one.

    Raises:
        UserError: the record is damaged.
    """
    found: dict[str, dict[Any, tuple[int | None, str]]] = {}
    for number, (_, record) in enumerate(surviving(run_dir / SPOOL_NAME)):
        if "text" in record:
            step = record.get("step")
            found.setdefault(record["artifact"], {})[-1 - number if step is None else step] = step, record["text"]
    return {name: list(of_name.values()) for name, of_name in found.items()}


@lru_cache(maxsize=64)
def _read(run_dir: Path, size: int, changed: int) -> TrackedRun | None:
    """The size and the time of the file are there for the cache: a run that goes on is read again."""
    points: dict[str, dict[int, float]] = {}
    about: dict[str, Any] = {"status": "", "params": {}, "tags": {}}
    times = []
    for _, record in surviving(run_dir / SPOOL_NAME):
        times.append(record["time"])
        for name, value in record.get("metrics", {}).items():
            points.setdefault(name, {})[record["step"]] = float(value)
        for key in ("params", "tags"):
            about[key] |= record.get(key, {})
        about["status"] = record.get("status", about["status"])
    if not times:
        return None
    about["params"] = {key: value for key, value in joined(about["params"]).items() if value != NULL}
    metrics = {
        name: Series(np.array(sorted(by_step), dtype=np.int64), np.array([by_step[step] for step in sorted(by_step)]))
        for name, by_step in points.items()
    }
    run = f"{run_dir.parent.name}/{run_dir.name}"
    last = {name: float(series.value[-1]) for name, series in metrics.items()}
    return TrackedRun(run, run_dir.parent.name, run, start=times[0], end=times[-1], last=last, metrics=metrics, **about)
