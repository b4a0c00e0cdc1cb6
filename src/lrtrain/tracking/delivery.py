"""Sends a spool to MLflow, as far as it has grown, from where the last delivery stopped.

`mlflow.json` in the run directory records the progress. It is written after the server took a batch, so a crash
between the two sends that batch again. This is harmless: MLflow's database has a primary key over run, key, step, time
and value of a metric and drops what it has; a parameter with the same value and a tag are taken again.

MLflow takes no point back. Where a session superseded what earlier ones recorded (`course.surviving`), a new run gets
all that holds, and the one before is deleted, which MLflow can undo.
"""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import write_atomically
from lrtrain.tracking.course import newest_course, records, surviving
from lrtrain.tracking.destination import connect, experiment_id, quiet, redact, user
from lrtrain.tracking.names import NULL, shown_name
from lrtrain.tracking.spool import SPOOL_NAME

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

STATE_NAME = "mlflow.json"
RUN_TAG = "lrtrain.run"  # finds the run again when a crash lost its id
USER_TAG = "mlflow.user"
SUPERSEDED_TAG = "lrtrain.superseded"
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
    capitals: bool = False  # metrics have the names of `shown_name`; not in runs of an older version
    course: int = 0  # the offset in the spool up to which the run has what no later session superseded


class Delivery:
    """Sends the spool of `run_dir` to the MLflow at `uri`. One pass at a time in a process."""

    def __init__(self, run_dir: Path, uri: str) -> None:
        quiet()
        self.uri = uri
        self.run_dir = run_dir
        self._spool = run_dir / SPOOL_NAME
        self._size = 0
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
            self._size = self._spool.stat().st_size
            if self._size == self.state.delivered == self.state.artifacts_delivered:
                return 0
            client, artifact_location = self._connection
            run_id = self._open_run(client, artifact_location)  # asked each time: a server may come back with none
            sent = self._send_rows(client, run_id)
            self._send_artifacts(client, run_id)
            return sent

    def waiting(self) -> int:
        """The points (metric values) that the server has not taken yet."""
        return sum(len(record.get("metrics", ())) for _, record in surviving(self._spool, self._load().delivered))

    @cached_property
    def _connection(self) -> tuple["MlflowClient", str | None]:
        return connect(self.uri, self.run_dir)

    def _open_run(self, client: "MlflowClient", artifact_location: str | None) -> str:
        from mlflow import MlflowException

        first = next(records(self._spool), None)
        if first is None or "run" not in first[1]:
            raise UserError(f"{self._spool} does not start with a run: it is not a spool of lrtrain")
        run, start = first[1]["run"], first[1]["time"]
        course = self._course()
        if self.state.run_id is not None and course == self.state.course:
            try:
                client.get_run(self.state.run_id)
                return self.state.run_id
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        where = experiment_id(client, run["experiment"], artifact_location)
        tag = f"{run['id']}/{course}" if course else run["id"]
        known = client.search_runs([where], filter_string=f"tags.`{RUN_TAG}` LIKE '{run['id']}%'")
        found = [one for one in known if one.data.tags[RUN_TAG] == tag]
        mlflow_run = (
            found[0] if found else client.create_run(where, start, {RUN_TAG: tag, USER_TAG: user()}, run["name"])
        )
        run_id = str(mlflow_run.info.run_id)
        for one in known:
            if one.data.tags[RUN_TAG] != tag:
                client.set_tag(one.info.run_id, SUPERSEDED_TAG, f"resumed from an earlier step: {run_id}")
                client.set_terminated(one.info.run_id, "KILLED")
                client.delete_run(one.info.run_id)
        capitals = all(shown_name(key) == key for key in mlflow_run.data.metrics)
        self.state = State(redact(self.uri), run["experiment"], run_id, capitals=capitals, course=course)
        self._save()
        return run_id

    def _course(self) -> int:
        """Where in the spool its present course begins to differ from the one before."""
        waiting = records(self._spool, self.state.delivered)
        if self.state.run_id is None or any("resumed" in record for _, record in waiting):
            return newest_course(self._spool)
        return self.state.course

    def _pending(self, after: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """What of the run waits beyond a byte, as the spool was when the pass began."""
        read = surviving if after < self.state.course else records
        return takewhile(lambda item: item[0] <= self._size, read(self._spool, after))

    def _send_rows(self, client: "MlflowClient", run_id: str) -> int:
        from mlflow.entities import Metric, Param, RunTag

        sent = 0
        for batch in self._batches():
            metrics, params, tags, inputs = [], [], {}, []
            for _, record in batch:
                for key, value in record.get("metrics", {}).items():
                    name = shown_name(key) if self.state.capitals else key
                    metrics.append(Metric(name, float(value), record["time"], record["step"]))
                params += [Param(*piece) for item in _set(record.get("params", {})) for piece in _pieces(*item)]
                inputs += [_input(record["dataset"])] if "dataset" in record else []
                tags.update(record.get("tags", {}))
            for start in range(0, len(params), PARAMS_PER_CALL):
                client.log_batch(run_id, params=params[start : start + PARAMS_PER_CALL])
            if inputs:
                client.log_inputs(run_id, inputs)
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
        for end, record in self._pending(self.state.artifacts_delivered):
            if "text" in record:
                client.log_text(run_id, record["text"], record["artifact"])
            elif "artifact" in record and (file := self.run_dir / record["file"]).is_file():
                client.log_artifact(run_id, str(file))  # one that is gone can be made again
            self.state.artifacts_delivered = end
            if "artifact" in record:
                self._save()
        self._save()

    def _batches(self) -> Iterator[list[tuple[int, dict[str, Any]]]]:
        """What waits, with the offsets of the records' ends: at most 1000 metrics a batch, and a status ends one."""
        batch: list[tuple[int, dict[str, Any]]] = []
        metrics = 0
        for end, record in self._pending(self.state.delivered):
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


def _set(params: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The parameters that say something: not what is null from the beginning on, which config.yaml tells."""
    return ((key, value) for key, value in params.items() if value != NULL or re.search(r"/\d+$", key))


def _input(dataset: Mapping[str, str]) -> "DatasetInput":
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": dataset["source"]})
    described = Dataset(dataset["name"], dataset["digest"], "local", source, profile=dataset["profile"])
    return DatasetInput(described, [InputTag("mlflow.data.context", dataset["context"])])


def _pieces(key: str, value: str) -> Iterator[tuple[str, str]]:
    """A parameter as (key, up to 6000 characters), (key/part2, the next 6000), …: nothing is cut."""
    yield key, value[:PARAM_LENGTH]
    for part, start in enumerate(range(PARAM_LENGTH, len(value), PARAM_LENGTH), start=2):
        yield f"{key}/part{part}", value[start : start + PARAM_LENGTH]
