"""Sends a spool to MLflow, as far as it has grown, from where the last delivery stopped.

`mlflow.json` in the run directory records the progress. It is written after the server took a batch, so a crash
between the two sends that batch again. This is harmless: MLflow's database has a primary key over run, key, step, time
and value of a metric and drops what it has; a parameter with the same value and a tag are taken again.
"""

import json
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import write_atomically
from lrtrain.tracking.destination import connect, experiment_id, quiet, redact
from lrtrain.tracking.spool import SPOOL_NAME, records

if TYPE_CHECKING:
    from mlflow import MlflowClient

STATE_NAME = "mlflow.json"
RUN_TAG = "lrtrain.run"  # finds the run again when a crash lost its id
METRICS_PER_CALL = 1000  # MLflow's limit
PARAM_LENGTH = 6000  # MLflow's limit of one value, in characters; it cuts longer ones in silence
PARAMS_PER_CALL = 10  # a request may have 10⁶ bytes, and JSON spends up to 12 on a character

_one_pass = threading.Lock()  # a sender that finalize gave up on may still be in its last pass


@dataclass
class State:
    """What `mlflow.json` holds: the run, where it is (without password), and the bytes of the spool delivered."""

    tracking_uri: str
    experiment: str | None = None
    run_id: str | None = None
    delivered: int = 0
    artifacts_delivered: int = 0  # apart, so that an artifact store that fails does not hold the metrics back


class Delivery:
    """Sends the spool of `run_dir` to the MLflow at `uri`. One pass at a time in a process."""

    def __init__(self, run_dir: Path, uri: str) -> None:
        quiet()
        self.uri = uri
        self.run_dir = run_dir
        self._spool = run_dir / SPOOL_NAME
        self.state = self._load()

    def register(self) -> None:
        """Write down where the run is tracked, so that `lrtrain sync` knows even if MLflow is never reached."""
        with _one_pass:
            self.state = self._load()
            self._save()

    def send(self) -> int:
        """Send everything that waits and return the number of points (metric values) that the server took.

        Raises whatever MLflow, its database or the network raise; what was taken until then is recorded.
        """
        with _one_pass:
            self.state = self._load()
            size = self._spool.stat().st_size
            if size == self.state.delivered == self.state.artifacts_delivered:
                return 0
            client, artifact_location = self._connection
            run_id = self._open_run(client, artifact_location)  # asked each time: a server may come back with none
            sent = self._send_rows(client, run_id)
            self._send_artifacts(client, run_id)
            return sent

    def waiting(self) -> int:
        """The points (metric values) that the server has not taken yet."""
        return sum(len(record.get("metrics", ())) for _, record in records(self._spool, self._load().delivered))

    @cached_property
    def _connection(self) -> tuple["MlflowClient", str | None]:
        return connect(self.uri, self.run_dir)

    def _open_run(self, client: "MlflowClient", artifact_location: str | None) -> str:
        from mlflow import MlflowException

        first = next(records(self._spool), None)
        if first is None or "run" not in first[1]:
            raise UserError(f"{self._spool} does not start with a run: it is not a spool of lrtrain")
        run, start = first[1]["run"], first[1]["time"]
        if self.state.run_id is not None:
            try:
                client.get_run(self.state.run_id)
                return self.state.run_id
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        where = experiment_id(client, run["experiment"], artifact_location)
        found = client.search_runs([where], filter_string=f"tags.`{RUN_TAG}` = '{run['id']}'", max_results=1)
        tags = {RUN_TAG: run["id"]}
        mlflow_run = found[0] if found else client.create_run(where, start, tags, run["name"])
        self.state = State(redact(self.uri), run["experiment"], mlflow_run.info.run_id)
        self._save()
        return str(mlflow_run.info.run_id)

    def _send_rows(self, client: "MlflowClient", run_id: str) -> int:
        from mlflow.entities import Metric, Param, RunTag

        sent = 0
        for batch in self._batches():
            metrics, params, tags = [], [], {}
            for _, record in batch:
                for key, value in record.get("metrics", {}).items():
                    metrics.append(Metric(key, float(value), record["time"], record["step"]))
                params += [Param(*piece) for item in record.get("params", {}).items() for piece in _pieces(*item)]
                tags.update(record.get("tags", {}))
            for start in range(0, len(params), PARAMS_PER_CALL):
                client.log_batch(run_id, params=params[start : start + PARAMS_PER_CALL])
            client.log_batch(run_id, metrics=metrics, tags=[RunTag(*tag) for tag in tags.items()])
            self.state.delivered, last = batch[-1]
            if last.get("status") == "RUNNING":
                client.update_run(run_id, status="RUNNING")
            elif "status" in last:
                client.set_terminated(run_id, last["status"], end_time=last["time"])
            sent += len(metrics)
            self._save()
        return sent

    def _send_artifacts(self, client: "MlflowClient", run_id: str) -> None:
        for end, record in records(self._spool, self.state.artifacts_delivered):
            if "artifact" in record:
                client.log_text(run_id, record["text"], record["artifact"])
            self.state.artifacts_delivered = end
            if "artifact" in record:
                self._save()
        self._save()

    def _batches(self) -> Iterator[list[tuple[int, dict[str, Any]]]]:
        """What waits, with the offsets of the records' ends: at most 1000 metrics a batch, and a status ends one."""
        batch: list[tuple[int, dict[str, Any]]] = []
        metrics = 0
        for end, record in records(self._spool, self.state.delivered):
            metrics += len(record.get("metrics", ()))
            if batch and (metrics > METRICS_PER_CALL or "status" in batch[-1][1]):
                yield batch
                batch, metrics = [], len(record.get("metrics", ()))
            batch.append((end, record))
        if batch:
            yield batch

    def _load(self) -> State:
        state, fresh = load_state(self.run_dir), State(redact(self.uri))
        if state is None or state.tracking_uri != fresh.tracking_uri:
            return fresh
        # A spool shorter than what was delivered is another one than the state tells of.
        return state if self._spool.exists() and self._spool.stat().st_size >= state.delivered else fresh

    def _save(self) -> None:
        write_atomically(self.run_dir / STATE_NAME, (json.dumps(asdict(self.state), indent=2) + "\n").encode())


def load_state(run_dir: Path) -> State | None:
    """What `mlflow.json` of a run directory says, None when there is none.

    Raises:
        UserError: the file is damaged.
    """
    path = run_dir / STATE_NAME
    try:
        return State(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: remove it, and everything is sent again without repeats") from error


def _pieces(key: str, value: str) -> Iterator[tuple[str, str]]:
    """A parameter as (key, up to 6000 characters), (key/part2, the next 6000), …: nothing is cut."""
    yield key, value[:PARAM_LENGTH]
    for part, start in enumerate(range(PARAM_LENGTH, len(value), PARAM_LENGTH), start=2):
        yield f"{key}/part{part}", value[start : start + PARAM_LENGTH]
