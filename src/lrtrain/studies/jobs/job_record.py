"""What the folder of a job tells: which settings it is for, and whether it has come to an end."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lrtrain.config.settings import as_text
from lrtrain.data.manifest import MANIFEST, Manifest
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import write_atomically, writing
from lrtrain.runtime.hints import nearest
from lrtrain.runtime.yaml_file import content_of
from lrtrain.studies.jobs.job import Job, Outcome
from lrtrain.tracking.names import difference, flatten
from lrtrain.tracking.recorded import recorded
from lrtrain.tracking.runs import TrackedRun

FILE = "job.json"
PLACE = ("name", "runs", "ckpt_path", "trainer.logger")  # where a run lives, not what it is
DIVERGED = "diverged"


def record_job(job: Job, diverged: str = "") -> None:
    """Writes the job's settings, and why it diverged, into its folder.

    Raises:
        UserError: the folder cannot be written.
    """
    content = {**_identity(job), DIVERGED: diverged}
    with writing(f"cannot write into {job.folder}", "make room, or set --runs to another disk"):
        job.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(job.folder / FILE, (json.dumps(content, indent=2) + "\n").encode())


def recorded_outcome(job: Job, metric: str) -> Outcome | None:
    """How the job ended, if it finished or diverged.

    Raises:
        UserError: the folder holds a run of no job or with other settings; the finished run has no such metric, or its
            data set is another one by now.
    """
    diverged = _diverged(job)
    for run_dir in job.run_dirs():
        run = recorded(run_dir)
        if run is None or run.status != "FINISHED":
            continue
        if metric not in run.last:
            raise UserError(f"the run {run_dir} has no metric {metric!r}; {nearest(metric, run.last)}")
        _check_data(run, run_dir)
        value, seconds = run.last[metric], ((run.end or run.start) - run.start) / 1000
        if math.isfinite(value):
            return Outcome("finished", value, run_dir, "", seconds)
        return Outcome("diverged", math.inf, run_dir, f"{metric} is {value}", seconds)
    return Outcome("diverged", math.inf, job.newest_run(), diverged, 0.0) if diverged else None


def other_settings(known: Mapping[str, Any], job: Job) -> str | None:
    """In what a job differs from the content of a `job.json`; None where in nothing."""
    return difference(_flat(known), _flat(_identity(job)))


def _diverged(job: Job) -> str:
    """Why the folder's job diverged, empty if it did not; refuses a folder that is another's."""
    file = job.folder / FILE
    try:
        known = json.loads(file.read_text())
    except FileNotFoundError:
        if run_dir := job.newest_run():
            raise UserError(f"{run_dir} is no run of a job: give another name, or remove {job.folder}") from None
        return ""
    except ValueError as error:
        raise UserError(f"{file} is damaged: remove it") from error
    if found := other_settings(known, job):
        raise UserError(
            f"{job.folder} holds a run with other settings ({found}): give another name, or remove that folder"
        )
    return known[DIVERGED]


def _check_data(run: TrackedRun, run_dir: Path) -> None:
    """Raises UserError where the shards that a run was trained on are others now, of the same name."""
    path = run.params.get("data.path", "")
    there = {key: value for key, value in run.params.items() if key.startswith("manifest.") and key.endswith("sha256")}
    if not there or not Path(path, MANIFEST).is_file():
        return
    manifest = Manifest.load(path)
    content: dict[str, Any] = {split: asdict(manifest.split(split)) for split in ("train", "val")}
    content["tokenizer_sha256"] = manifest.tokenizer_sha256
    now = {key: value for key, value in flatten({"manifest": content}).items() if key.endswith("sha256")}
    if found := difference(there, now):
        raise UserError(
            f"{run_dir} was trained on another data set than {path} is now ({found}): give another --runs, or other "
            "--records, or another data.path"
        )


def _identity(job: Job) -> dict[str, Any]:
    """What makes two jobs the same: the content of their files and their settings."""
    settings = {key: value for key, value in job.settings.items() if key not in PLACE}
    content = {"configs": [content_of(path) for path in job.configs], "settings": settings}
    return json.loads(json.dumps(content, default=str))


def _flat(content: Mapping[str, Any]) -> dict[str, str]:
    files = {f"config {number}": text or {} for number, text in enumerate(content["configs"], start=1)}
    return {**flatten(files), **{key: as_text(value) for key, value in content["settings"].items()}}
