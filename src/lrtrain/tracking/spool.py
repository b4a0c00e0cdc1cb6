"""The durable local record of a run: `metrics.jsonl`, one JSON object a line, written before anything is sent.

Every line has `time` (milliseconds since 1970) and one of
    {"run": {"id", "name", "experiment", "folder"}}   the first line: who this run is, wherever its folder is moved to
    {"status": "RUNNING", "host": "node7"}       RUNNING once a session, then FINISHED, FAILED or KILLED;
                                                 with "resumed": 10 where it goes on from a checkpoint of that step
    {"step": 10, "metrics": {"loss": 2.5}}       NaN and infinities as "NaN", "Infinity", "-Infinity": strict JSON
    {"params": {"model.rank": "64"}}  {"tags": {"git.dirty": "false"}}
    {"artifact": "config.yaml", "text": "..."}   with "step": 10 where it is of that step
    {"artifact": "report.html", "file": "report.html"}   a file of the run directory, as it is when it is sent
    {"dataset": {"name", "digest", "source", "profile", "context"}}   what was trained or validated on
    {"lost": true}                               the record came from a store after its disk was lost: the session may
                                                 have recorded, and sent to MLflow, more than there is here
"""

import errno
import fcntl
import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import write_atomically, writing
from lrtrain.tracking.course import records, surviving

SPOOL_NAME = "metrics.jsonl"


class SpoolBusyError(UserError):
    """Another live process owns this run directory."""


class Spool:
    """The spool of one run directory, open for appending and owned by this process until `close`.

    Opening, and `start`, read what earlier sessions left of the run's present course: `run` (the first line's entry,
    None when new), `marks` (the highest step of each metric, frozen from there on), `params`, `artifacts` (each one's
    last text), `datasets`, `tags`, `status`, `host`, `last_step` and `last_time`. A last line that a crash cut short is
    dropped.

    Args:
        run_dir: the run directory; made when missing.
        patience: seconds to wait for a process that still owns it (a killed trainer's workers live on for seconds).

    Raises:
        SpoolBusyError: another process owns the run directory.
        UserError: the file cannot be opened, or holds a line that is no JSON object.
    """

    def __init__(self, run_dir: Path, patience: float = 0.0) -> None:
        self.path = run_dir / SPOOL_NAME
        self.run: dict[str, str] | None = None
        self.status: str | None = None
        self.host: str | None = None
        self.last_time = 0
        # Reentrant: Lightning finalizes loggers inside a signal handler, which may interrupt an append.
        self._mutex = threading.RLock()
        with writing(f"cannot write {self.path}", "check the run directory"):
            run_dir.mkdir(parents=True, exist_ok=True)
            self._owned = open(self.path, "ab")  # noqa: SIM115 (holds the lock until close)
        try:
            self._own(patience)
            self._drop_cut_line()
            self._recall()
        except BaseException:
            self.close()
            raise

    def start(self, name: str, experiment: str, resumed: int | None = None) -> None:
        """Open a session: write the first line when the spool is new, then status RUNNING.

        Args:
            name: the run's name.
            experiment: the MLflow experiment.
            resumed: the optimizer steps that were done at the checkpoint from which the session goes on; what was
                recorded of later ones is superseded.
        """
        if self.run is None:
            self.append({"run": _identity(self.path.parent, name, experiment)})
        went_on = {} if resumed is None else {"resumed": resumed}
        self.append({"status": "RUNNING", "host": socket.gethostname(), **went_on})
        if went_on:
            self._recall()

    def finish(self, status: str, time_ms: int | None = None) -> None:
        """Write the session's final status (FINISHED, FAILED, KILLED) and fsync."""
        self.append({"status": status}, time_ms)
        os.fsync(self._owned.fileno())

    def append(self, record: Mapping[str, Any], time_ms: int | None = None) -> None:
        """Write one record as one line, whole or not at all.

        Raises:
            UserError: the disk does not take it (full, quota, gone).
        """
        entry = {"time": time_ms or int(time.time() * 1000), **record}
        if "metrics" in entry:
            entry["metrics"] = {
                key: value if math.isfinite(value) else json.dumps(value) for key, value in entry["metrics"].items()
            }
        line = (json.dumps(entry, allow_nan=False) + "\n").encode()
        with self._mutex:
            with writing(f"cannot write {self.path}", "free some space, then resume"):
                _append_whole(self.path, line)
            self._remember(entry, marks=False)

    def close(self) -> None:
        """Release the run directory for other processes."""
        self._owned.close()

    def _own(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(self._owned, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    folder = self.path.parent
                    raise SpoolBusyError(f"{folder} is in use by another process: stop it or start a new run") from None
                time.sleep(0.2)
            except OSError:  # a file system without locks: nothing to ask
                return

    def _drop_cut_line(self) -> None:
        data = self.path.read_bytes()
        if data and not data.endswith(b"\n"):
            os.truncate(self.path, data.rfind(b"\n") + 1)

    def _recall(self) -> None:
        self.marks: dict[str, int] = {}
        self.params: dict[str, str] = {}
        self.artifacts: dict[str, str] = {}
        self.datasets: list[dict[str, str]] = []
        self.tags: dict[str, str] = {}
        self.last_step = 0
        for _, record in surviving(self.path):
            self._remember(record)

    def _remember(self, record: Mapping[str, Any], marks: bool = True) -> None:
        self.last_time = record["time"]
        if "metrics" in record:
            self.last_step = record["step"]
            if marks:
                for key in record["metrics"]:
                    self.marks[key] = max(record["step"], self.marks.get(key, record["step"]))
        elif "params" in record:
            self.params.update(record["params"])
        elif "artifact" in record:
            self.artifacts[record["artifact"]] = record.get("text", "")
        elif "dataset" in record:
            self.datasets.append(record["dataset"])
        elif "tags" in record:
            self.tags.update(record["tags"])
        elif "status" in record:
            self.status, self.host = record["status"], record.get("host", self.host)
        elif "run" in record:
            self.run = record["run"]


def note_what_is_lost(run_dir: Path) -> None:
    """Marks a record that came from a store and whose session never came to its end: there may have been more of it."""
    file, status = run_dir / SPOOL_NAME, None
    for _, record in records(file):
        status = record.get("status", status)
    if status == "RUNNING":
        line = json.dumps({"time": int(time.time() * 1000), "lost": True}) + "\n"
        with writing(f"cannot write {file}", "free some space"):
            _append_whole(file, line.encode())


def begin_anew(run_dir: Path, name: str, experiment: str) -> None:
    """Makes a copied run one of its own, with all that the original recorded until then."""
    spool = run_dir / SPOOL_NAME
    first, _, rest = spool.read_bytes().partition(b"\n")
    record = {**json.loads(first), "run": _identity(run_dir, name, experiment)}
    write_atomically(spool, json.dumps(record).encode() + b"\n" + rest)


def _identity(run_dir: Path, name: str, experiment: str) -> dict[str, str]:
    return {"id": uuid.uuid4().hex, "name": name, "experiment": experiment, "folder": str(run_dir.resolve())}


def is_copy(run_dir: Path) -> bool:
    """Whether a run directory was copied: the one in which its run began still holds that run."""
    here = first_run(run_dir / SPOOL_NAME)
    if here is None or "folder" not in here or here["folder"] == str(run_dir.resolve()):
        return False
    there = first_run(Path(here["folder"]) / SPOOL_NAME)
    return there is not None and there["id"] == here["id"]


def first_run(path: Path) -> dict[str, str] | None:
    """The run of a spool's first line; None without one."""
    first = next(records(path), None) if path.is_file() else None
    return first[1].get("run") if first is not None else None


def _append_whole(path: Path, line: bytes) -> None:
    # Opened for each line: a signal handler may have closed the session in the middle of a log call.
    with open(path, "ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise
