"""A job: one training run by `lrtrain fit` in a process of its own, which is never done twice."""

import re
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from lrtrain.config.settings import as_text
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.own_modules import environment
from lrtrain.runtime.slurm import outside_of_step
from lrtrain.studies.jobs.job import Job, Outcome
from lrtrain.studies.jobs.job_record import record_job, recorded_outcome
from lrtrain.studies.jobs.processes import run
from lrtrain.studies.jobs.shared_records import give_record, take_record

COMMAND = (sys.executable, "-m", "lrtrain", "fit")
LOG = "fit.log"
LOGGER = "lrtrain.tracking.logger.MLflowLogger"
DIVERGED = re.compile(r"lrtrain: error: (stopped at step \d+: non-finite gradients.*)")


def run_job(job: Job, metric: str = "val/loss", keep_checkpoints: bool = False) -> Outcome:
    """Trains a job to its end, from its last checkpoint if it was interrupted; what it printed is in `fit.log`.

    A job that has finished or diverged under `<runs>/<name>`, or in its folder of records, is not repeated. Its
    checkpoints are removed then, unless `keep_checkpoints` is set, which records do not hold; a job that failed keeps
    its newest one.

    Raises:
        UserError: `<runs>/<name>` holds a run with other settings, the finished run has no record or no such metric, or
            the folder cannot be written.
        EndedError: the process was ended together with all others of `workers`.
    """
    if not keep_checkpoints:
        take_record(job)
    if known := recorded_outcome(job, metric):
        outcome = replace(known, kept=True)
    else:
        record_job(job)
        outcome = _attempt(job, metric, keep_checkpoints)
    if outcome.status != "failed" and not keep_checkpoints:
        for checkpoints in job.folder.glob("*/checkpoints"):
            shutil.rmtree(checkpoints)
        give_record(job, outcome)
    return outcome


def _attempt(job: Job, metric: str, keep_checkpoints: bool) -> Outcome:
    log = job.folder / LOG
    before = log.stat().st_size if log.exists() else 0
    variables = {**outside_of_step(environment()), "OMP_NUM_THREADS": str(job.threads)}
    started = time.monotonic()
    code = run([*COMMAND, *arguments(job, keep_checkpoints)], variables, log)
    seconds = time.monotonic() - started
    with open(log, "rb") as file:
        file.seek(before)
        output = file.read().decode(errors="replace")
    if diverged := DIVERGED.search(output):
        record_job(job, diverged[1])
    if outcome := recorded_outcome(job, metric):
        return replace(outcome, seconds=seconds)
    if code == 0:
        raise UserError(f"{job.folder}: the run left no finished record: see {log}")
    return Outcome("failed", None, job.newest_run(), f"{_reason(code, output)} (see {log})", seconds, code == 2)


def arguments(job: Job, keep_checkpoints: bool = False) -> list[str]:
    """The arguments of `lrtrain fit` for a job."""
    settings: dict[str, object] = {"trainer.enable_progress_bar": False}
    if not keep_checkpoints:
        settings["checkpoints.keep"] = 1
    settings |= job.settings
    if job.tags:
        settings["trainer.logger"] = tracked(job.settings.get("trainer.logger"), job)
    settings |= {"name": job.name, "runs": str(job.runs), "ckpt_path": "last"}
    files = [part for file in job.configs for part in ("--config", str(file))]
    return [*files, *(f"--{key}={as_text(value)}" for key, value in settings.items())]


def tracked(logger: object, job: Job) -> list[object]:
    """A value of `trainer.logger` with the record's logger, whose run has the job's tags."""
    loggers = recording(logger, job.name, job.runs)
    for index, item in enumerate(loggers):
        if is_own(item):
            settings = {**item.get("init_args", {})}
            settings["run_name"] = settings.get("run_name") or job.name
            settings["tags"] = {**(settings.get("tags") or {}), **job.tags}
            loggers[index] = {"class_path": LOGGER, "init_args": settings}
    return loggers


def recording(logger: object, group: str, runs: Path) -> list[object]:
    """A value of `trainer.logger` with the logger that keeps the record; as `fit` adds it where there is none."""
    loggers = logger if isinstance(logger, list) else [] if isinstance(logger, bool | None) else [logger]
    if any(is_own(item) for item in loggers):
        return [*loggers]
    alone = {"send": False} if logger is False or logger == [] else {}
    return [*loggers, {"class_path": LOGGER, "init_args": {"group": group, "root": str(runs), **alone}}]


def is_own(logger: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether an item of `trainer.logger` is the logger that keeps the record."""
    return isinstance(logger, Mapping) and logger.get("class_path") == LOGGER


def _reason(code: int, output: str) -> str:
    """Why a process ended: its line for the user, else the exception that ended it, else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for pattern in (r"lrtrain: error: (.+)", r"((?:\w+\.)*\w*(?:Error|Exception)\b.*)"):
        for line in reversed(lines):
            if match := re.fullmatch(pattern, line):
                return match[1]
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{how}: {lines[-1]}" if lines else how
