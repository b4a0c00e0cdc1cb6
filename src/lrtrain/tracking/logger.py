"""The Lightning logger: everything goes to the run's spool at once, and from there to MLflow in the background."""

import json
import sys
from argparse import Namespace
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lrtrain.runtime.errors import UserError
from lrtrain.tracking.delivery import STATE_NAME, Delivery, load_state
from lrtrain.tracking.destination import GROUP_TAG, experiment_name, redact, resolve_uri, user
from lrtrain.tracking.names import flatten, legal_name
from lrtrain.tracking.provenance import provenance, source
from lrtrain.tracking.sender import Sender
from lrtrain.tracking.spool import Spool, begin_anew, is_copy

FINISH_PATIENCE = 30.0  # seconds that `finalize` waits for a working MLflow; a dead one ends the wait at its time-out
OWNER_PATIENCE = 15.0  # seconds that a resumed run waits for the workers of its killed predecessor
TAG_LENGTH = 8000  # MLflow's limit, in characters
DIGEST_LENGTH = 36  # MLflow's limit
NOTE = "mlflow.note.content"
STATUSES = {"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED", "killed": "KILLED", "aborted": "KILLED"}


class MLflowLogger(Logger):
    """Tracks a run in MLflow through a local spool, so that no server can slow or stop training.

    The same `run_dir` is the same run: a resumed one goes on there, and metrics at steps that the spool holds from an
    earlier session are not repeated. A parameter that a resumed run changes is logged as `<key>/2`, since MLflow never
    changes one; a changed `config.yaml` as `config.2.yaml`. After `resume` from a step before the last one, what was
    recorded of later steps is superseded: the spool keeps it, and MLflow gets the run anew, while the one before
    is deleted there (which MLflow can undo) with a tag that says why. Only rank zero writes.

    Args:
        experiment: the MLflow experiment; by default the environment variable MLFLOW_EXPERIMENT_NAME, else `lrtrain`.
        group: what the runs of one name have in common, as the tag `lrtrain.group`; by default the name of the folder
            that holds the run directory.
        run_name: the run's name; by default the last two parts of the run directory (`quickstart/0001`).
        tracking_uri: a server's URL or a database (`sqlite:///path/mlflow.db`). By default the environment variable
            MLFLOW_TRACKING_URI, else `sqlite:///<root>/mlflow.db` with its artifacts in `<root>/artifacts`.
        tags: further tags of the run.
        root: the folder of all runs.
        run_dir: this run's directory; may also be set as an attribute before anything is logged.
        send: whether MLflow gets the record; false keeps it in the run directory alone, for `lrtrain sync` later.

    Raises:
        UserError: the tracking URI is none that MLflow knows, the experiment has no name, or a tag is too long.
    """

    def __init__(
        self,
        experiment: str | None = None,
        group: str | None = None,
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: dict[str, str] | None = None,
        root: str = "runs",
        run_dir: str | None = None,
        send: bool = True,
    ) -> None:
        super().__init__()
        experiment = experiment_name(experiment)
        if not experiment.strip():
            raise UserError("the logger's experiment is empty: give it a name")
        for key, value in (tags or {}).items():
            if len(value) > TAG_LENGTH:
                raise UserError(f"the logger's tag '{key}' has {len(value)} characters: MLflow takes {TAG_LENGTH}")
        self.run_name = run_name
        self.run_dir = run_dir
        self.group = group
        self.tracking_uri = resolve_uri(tracking_uri, root) if send else None
        self._experiment = experiment
        self._tags = {legal_name(key): value for key, value in (tags or {}).items()}
        self._session: tuple[Spool, Sender | None] | None = None
        self._resumed: int | None = None
        self._latest: dict[str, tuple[int, float]] = {}

    @property
    def name(self) -> str:
        """The MLflow experiment."""
        return self._experiment

    @property
    def version(self) -> str | None:
        """The MLflow run's id; None until the background thread has reached MLflow for the first time."""
        state = load_state(Path(self.run_dir)) if self.run_dir is not None else None
        return state.run_id if state is not None and state.tracking_uri == redact(self.tracking_uri or "") else None

    @property
    def save_dir(self) -> str | None:
        """The run directory."""
        return self.run_dir

    @rank_zero_only
    def resume(self, step: int) -> None:
        """Say that the run goes on from a checkpoint after `step` optimizer steps; call it before its first record."""
        self._resumed, self._latest = step, {}
        if self._session is not None:
            self._start(self._session[0])

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record scalars (numbers, tensors of one element; NaN and infinities too) at `step`, by default the last one.

        Raises:
            ValueError: a value is no scalar.
            UserError: the disk is full.
        """
        spool = self._open()
        step = spool.last_step if step is None else int(step)
        points = {}
        for key, value in metrics.items():
            name, number = legal_name(key), _scalar(key, value)
            repeated = step <= spool.marks[name] if name in spool.marks else False
            if not repeated and self._latest.get(name) != (step, number):  # Lightning logs `epoch` with every call
                points[name] = number
                self._latest[name] = (step, number)
        if points:
            spool.append({"step": step, "metrics": points})

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Record parameters: nested keys joined by dots, values whole."""
        self._log_params(flatten(vars(params) if isinstance(params, Namespace) else params))

    @rank_zero_only
    def log_config(self, yaml_text: str, resolved: Mapping[str, Any]) -> None:
        """Record the whole resolved configuration: `yaml_text` as the artifact config.yaml, `resolved` as parameters.

        Parameter values are never cut: one over MLflow's 6000 characters goes on in `<key>/part2`.
        """
        self._log_version("config.yaml", yaml_text)
        self._log_params(flatten(resolved))

    @rank_zero_only
    def log_text(self, artifact_name: str, text: str, step: int | None = None) -> None:
        """Record `text` as the artifact `artifact_name`; a later text of the same name replaces it.

        One of a step is superseded when the run is resumed from an earlier one, as its metrics are.
        """
        spool = self._open()
        if spool.artifacts.get(artifact_name) != text:
            spool.append({"artifact": artifact_name, "text": text} | ({} if step is None else {"step": step}))

    @rank_zero_only
    def log_file(self, file_name: str) -> None:
        """Record a file of the run directory as an artifact; MLflow gets what it holds then."""
        self._open().append({"artifact": file_name, "file": file_name})

    @rank_zero_only
    def log_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Record the data manifest: the artifact data_manifest.json, its plain entries as parameters `manifest.*`."""
        self._log_version("data_manifest.json", json.dumps(manifest, indent=2))
        plain = {key: value for key, value in manifest.items() if not isinstance(value, list)}
        self._log_params(flatten({"manifest": plain}))

    @rank_zero_only
    def log_dataset(self, name: str, digest: str, source: str, profile: Mapping[str, Any], context: str) -> None:
        """Record what was trained or validated on (`context`): for MLflow's column of datasets, once a run."""
        spool = self._open()
        found = {"name": name, "digest": digest[:DIGEST_LENGTH], "source": source, "context": context}
        found["profile"] = json.dumps(profile)
        if found not in spool.datasets:
            spool.append({"dataset": found})

    @rank_zero_only
    def log_note(self, text: str) -> None:
        """Record MLflow's description of the run, which a user may edit there: a resumed run leaves it as it is."""
        spool = self._open()
        if NOTE not in spool.tags:
            spool.append({"tags": {NOTE: text[:TAG_LENGTH]}})

    @rank_zero_only
    def log_provenance(self) -> None:
        """Record commit, package versions, hardware and command: as tags (the newest session's), provenance.json."""
        found = provenance()
        self._log_version("provenance.json", json.dumps(found, indent=2))
        tags = {legal_name(key): value[:TAG_LENGTH] for key, value in flatten(found).items()}
        if found["git"]["commit"]:
            tags["mlflow.source.git.commit"] = found["git"]["commit"]  # the column that MLflow's table shows
        tags |= {"mlflow.source.name": source(), "mlflow.source.type": "LOCAL", "mlflow.user": user()}
        self._open().append({"tags": tags})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the session: `success` gives FINISHED, `failed` FAILED, and `killed`, SIGTERM or Ctrl-C KILLED.

        Waits at most some seconds for MLflow, then says what still waits. Whatever is logged later opens a new session.

        Raises:
            ValueError: `status` is none of these.
        """
        if status not in STATUSES:
            raise ValueError(f"finalize: unknown status '{status}', one of {', '.join(STATUSES)} is needed")
        session, self._session = self._session, None
        if session is None:  # nothing logged since the last time: that status stands
            return
        killed = isinstance(sys.exc_info()[1], KeyboardInterrupt | SystemExit | SIGTERMException)
        spool, sender = session
        spool.finish("KILLED" if killed else STATUSES[status])
        if sender is not None:
            sender.finish(FINISH_PATIENCE)
        spool.close()

    def _open(self) -> Spool:
        if self._session is None:
            if self.run_dir is None:
                raise UserError("the logger has no run directory: set MLflowLogger's run_dir (runs/<name>/0001)")
            run_dir = Path(self.run_dir)
            copied = is_copy(run_dir)
            if copied:  # the original's MLflow run is not its
                (run_dir / STATE_NAME).unlink(missing_ok=True)
                begin_anew(run_dir, self._name_in(run_dir), self._experiment)
            spool = Spool(run_dir, OWNER_PATIENCE)
            self._start(spool, copied)
            self._session = spool, _sender(run_dir, self.tracking_uri)
        return self._session[0]

    def _name_in(self, run_dir: Path) -> str:
        return self.run_name or "/".join(run_dir.absolute().parts[-2:])

    def _start(self, spool: Spool, copied: bool = False) -> None:
        spool.start(self._name_in(spool.path.parent), self._experiment, self._resumed if spool.run else None)
        self._resumed = None
        named = {GROUP_TAG: self.group or spool.path.absolute().parent.parent.name}
        if tags := (named if copied or GROUP_TAG not in spool.tags else {}) | self._tags:
            spool.append({"tags": tags})

    def _log_params(self, params: Mapping[str, str]) -> None:
        spool = self._open()
        new: dict[str, str] = {}
        for key, value in params.items():
            name = legal_name(key)
            free, last = _next(ChainMap(new, spool.params), name, (f"{name}/{number}" for number in count(2)))
            if last != value:
                new[free] = value
        if new:
            spool.append({"params": new})

    def _log_version(self, artifact: str, text: str) -> None:
        """Record an artifact that belongs to a session: a changed one gets a number and leaves the older in place."""
        spool, path = self._open(), Path(artifact)
        later = (f"{path.stem}.{number}{path.suffix}" for number in count(2))
        free, last = _next(spool.artifacts, artifact, later)
        if last != text:
            spool.append({"artifact": free, "text": text})


def own_logger(loggers: Iterable[object]) -> MLflowLogger | None:
    """The one of a Trainer's loggers that keeps the run's record."""
    return next((logger for logger in loggers if isinstance(logger, MLflowLogger)), None)


def _sender(run_dir: Path, uri: str | None) -> Sender | None:
    if uri is None:
        return None
    delivery = Delivery(run_dir, uri)
    delivery.register()
    return Sender(delivery)


def _next(known: Mapping[str, str], name: str, later: Iterator[str]) -> tuple[str, str | None]:
    """The first of the names that is free, and what stands under the one before it."""
    last = None
    while name in known:
        last, name = known[name], next(later)
    return name, last


def _scalar(key: str, value: Any) -> float:
    if not isinstance(value, str):
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            pass
    shape = getattr(value, "shape", None)
    what = type(value).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")
    raise ValueError(f"metric '{key}' is no scalar but a {what}: log a number or a tensor of one element")
