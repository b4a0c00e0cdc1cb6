"""What the folder of a job tells: which settings it is for, and whether it has come to an end."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrtrain.config.settings import as_text
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.hints import nearest
from lrtrain.runtime.yaml_file import content_of
from lrtrain.studies.jobs.job import Job, Outcome
from lrtrain.tracking.names import flatten
from lrtrain.tracking.spool import SPOOL_NAME, records

FILE = "job.json"
PLACE = ("name", "runs", "ckpt_path")  # where a run lives, not what it is
DIVERGED = "diverged"


def remember(job: Job, diverged: str = "") -> None:
    """Writes the job's settings, and why it diverged, into its folder.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        content = {**identity(job), DIVERGED: diverged}
        draft = job.folder / f"{FILE}.tmp"
        draft.write_text(json.dumps(content, indent=2, default=str) + "\n")
        draft.replace(job.folder / FILE)
    except OSError as error:
        raise UserError(
            f"cannot write into {job.folder}: {error.strerror}; make room, or set --runs to another disk"
        ) from error


def past(job: Job, metric: str) -> Outcome | None:
    """How the job ended, if it finished or diverged.

    Raises:
        UserError: the folder holds a run with other settings, or the finished run has no such metric.
    """
    known = _known(job)
    if known is not None:
        _same(job, known)
    for run_dir in job.run_dirs():
        finished = _finished(run_dir)
        if finished is None:
            continue
        if known is None:
            _made_with(job, run_dir)
        values, seconds = finished
        if metric not in values:
            raise UserError(f"the run {run_dir} has no metric {metric!r}; {nearest(metric, values)}")
        value = values[metric]
        if math.isfinite(value):
            return Outcome("finished", value, run_dir, "", seconds)
        return Outcome("diverged", math.inf, run_dir, f"{metric} is {value}", seconds)
    if known is not None and known[DIVERGED]:
        return Outcome("diverged", math.inf, job.newest_run(), known[DIVERGED], 0.0)
    return None


def identity(job: Job) -> dict[str, Any]:
    """What makes two jobs the same: the content of their files and their settings."""
    configs = [content_of(path) for path in job.configs]
    settings = {key: value for key, value in job.settings.items() if key not in (*PLACE, "trainer.logger")}
    return json.loads(json.dumps({"configs": configs, "settings": settings}, default=str))


def _known(job: Job) -> dict[str, Any] | None:
    file = job.folder / FILE
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{file} is damaged: remove it") from error


def _same(job: Job, known: Mapping[str, Any]) -> None:
    """Raises UserError where a job of the same name had other settings."""
    mine = identity(job)
    here, there = (_flat(content) for content in (mine, known))
    for key in sorted(here.keys() | there.keys()):
        if here.get(key) != there.get(key):
            _refuse(job, key, there.get(key, "not set"), here.get(key, "not set"))


def _flat(content: Mapping[str, Any]) -> dict[str, str]:
    files = {f"config {number}": text or {} for number, text in enumerate(content["configs"], start=1)}
    return {**flatten(files), **{key: as_text(value) for key, value in content["settings"].items()}}


def _made_with(job: Job, run_dir: Path) -> None:
    """Raises UserError where the configuration of a run that no job recorded is not the job's."""
    there = {
        key.replace(".init_args", ""): value for key, value in flatten(content_of(run_dir / "config.yaml")).items()
    }
    for key, value in job.settings.items():
        short, ours = key.replace(".init_args", ""), as_text(value)
        theirs = there.get(short, there.get(f"{short}.class_path", "not set"))
        if key not in PLACE and _value(ours) != _value(theirs):
            _refuse(job, key, theirs, ours)


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _refuse(job: Job, key: str, there: str, here: str) -> None:
    raise UserError(
        f"{job.folder} holds a run with other settings ({key}: {there} there, {here} here): give another name, or "
        "remove that folder"
    )


def _finished(run_dir: Path) -> tuple[dict[str, float], float] | None:
    """The last value of each metric of a run that has finished, and its seconds; else None."""
    spool, status = run_dir / SPOOL_NAME, ""
    values: dict[str, float] = {}
    times: list[int] = []
    if not spool.is_file():
        return None
    for _, record in records(spool):
        values |= {key: float(value) for key, value in record.get("metrics", {}).items()}
        status = record.get("status", status)
        times.append(record["time"])
    return (values, (times[-1] - times[0]) / 1000) if status == "FINISHED" else None
