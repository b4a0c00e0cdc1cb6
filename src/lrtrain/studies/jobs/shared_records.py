"""Records of jobs in a folder that travels: what one machine has trained counts as trained on another.

A job's record is `<folder>/<job>.jsonl.xz`: its settings as `job.json` holds them, then the lines of its newest run's
`metrics.jsonl` that make up its course, without paths, host and user, and without texts. No weights.
"""

import json
import lzma
from pathlib import Path
from typing import Any

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import write_atomically, writing
from lrtrain.studies.jobs.job import Job, Outcome
from lrtrain.studies.jobs.job_record import FILE, PLACE, other_settings
from lrtrain.tracking.course import surviving
from lrtrain.tracking.recorded import recorded
from lrtrain.tracking.spool import SPOOL_NAME

SUFFIX = ".jsonl.xz"
ELSEWHERE = "elsewhere"
"""Key of `job.json`: the file from which a job's record was taken."""

KEPT = ("run", "status", "params", "tags", "metrics")
"""What of a record travels."""

LOCAL = ("folder", "host", "hardware.host", "mlflow.", *PLACE)
"""Beginnings of keys that say where a run lies and who trained it."""


def take_record(job: Job) -> None:
    """Puts a job's record from `job.records` where the job's own would be; does nothing where that has begun.

    Raises:
        UserError: the record is damaged or of other settings, or the folder of runs cannot be written.
    """
    file = _file(job)
    if file is None or not file.is_file() or job.folder.exists():
        return
    try:
        first, *lines = lzma.decompress(file.read_bytes()).decode().splitlines()
        settings = {**json.loads(first), ELSEWHERE: file.name}
        lines = [line for line in lines if json.loads(line)["time"]]
    except (lzma.LZMAError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged: take it from its source again, or remove it") from error
    if found := other_settings(settings, job):
        raise UserError(f"{file} is of a run with other settings ({found}): give other --records, or remove it")
    with writing(f"cannot write into {job.folder}", "make room, or set --runs to another disk"):
        run_dir = job.folder / "0001"
        run_dir.mkdir(parents=True)
        write_atomically(job.folder / FILE, (json.dumps(settings, indent=2) + "\n").encode())
        write_atomically(run_dir / SPOOL_NAME, "".join(f"{line}\n" for line in lines).encode())


def give_record(job: Job, outcome: Outcome) -> None:
    """Writes the record of a job that has finished or diverged into `job.records`, unless it is there.

    Raises:
        UserError: the folder cannot be written.
    """
    file = _file(job)
    if file is None or file.exists() or outcome.status == "failed" or outcome.run_dir is None:
        return
    lines = [json.dumps(json.loads((job.folder / FILE).read_text()))]
    for _, record in surviving(outcome.run_dir / SPOOL_NAME):
        kept = {key: value if key == "metrics" else _portable(value) for key, value in record.items() if key in KEPT}
        if kept:
            step = {"step": record["step"]} if "step" in record else {}
            lines.append(json.dumps({"time": record["time"], **step, **kept}))
    with writing(f"cannot write into {file.parent}", "set --records to another folder"):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lzma.compress("".join(f"{line}\n" for line in lines).encode(), preset=9))


def trained_elsewhere(job: Job, outcome: Outcome) -> str:
    """Where a job was trained whose record was taken: `AMD EPYC, torch 2.14.1, commit c4556b0`; else empty."""
    if outcome.run_dir is None or not outcome.kept or ELSEWHERE not in json.loads((job.folder / FILE).read_text()):
        return ""
    run = recorded(outcome.run_dir)
    tags = {} if run is None else run.tags
    commit = tags.get("git.commit", "")[:7]
    changed = " and changes" if tags.get("git.dirty") == "true" else ""
    torch = f"torch {tags.get('versions.torch', '?')}"
    return ", ".join([tags.get("hardware.cpu", "?"), torch, *([f"commit {commit}{changed}"] if commit else [])])


def _file(job: Job) -> Path | None:
    return None if job.records is None else job.records / f"{job.name}{SUFFIX}"


def _portable(content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    return {key: value for key, value in content.items() if not key.startswith(LOCAL)}
