"""The MLflow run of a study as a whole, under which its trials are shown."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lrtrain.runtime.errors import UserError
from lrtrain.studies.sweep.study import Study
from lrtrain.tracking.destination import connect, experiment_id, quiet, reason, redact, resolve_uri

LOGGER = "lrtrain.tracking.logger.MLflowLogger"
SWEEP_TAG = "lrtrain.sweep"  # the trials have `lrtrain.study`: the parent is none of the runs to compare


def study_logger(configured: object, study: str, runs: Path) -> object:
    """The `trainer.logger` of a study's trials: the one configured, or the default one with the study as experiment.

    Raises:
        UserError: the configuration tracks nothing, so no trial would leave a metric.
    """
    if configured in (None, True):
        return {"class_path": LOGGER, "init_args": {"experiment": study, "root": str(runs)}}
    if _own(configured) is None:
        raise UserError(f"trainer.logger: a sweep reads the metric from the record of {LOGGER}: name it, or leave null")
    return configured


class Parent:
    """The parent run in the MLflow that the trials' logger names; one run for all workers of a study.

    MLflow that does not answer is told in a line, and the trials are tracked without a parent.
    """

    def __init__(self, study: Study, logger: object, runs: Path) -> None:
        self._study = study
        own = _own(logger)
        assert own is not None
        settings = own.get("init_args", {})
        self.uri = resolve_uri(settings.get("tracking_uri"), settings.get("root") or runs)
        self.run_id: str | None = None
        self._client: Any = None
        self._reach(lambda: self._open(settings.get("experiment") or "lrtrain", runs))

    def tags(self) -> dict[str, str]:
        """What makes a run a child of this one."""
        return {"mlflow.parentRunId": self.run_id} if self.run_id is not None else {}

    def close(self, status: str, best_yaml: str | None) -> None:
        """Ends the run as `FINISHED` or `KILLED`, with the best trial so far."""
        if self.run_id is not None:
            self._reach(lambda: self._close(status, best_yaml))

    def _open(self, experiment: str, runs: Path) -> None:
        self._client, location = connect(self.uri, runs / self._study.name / "trial")
        known = self._study.optuna.user_attrs.get("parent", {})
        if known.get("uri") == redact(self.uri):
            self._client.update_run(known["run_id"], status="RUNNING")
            self.run_id = known["run_id"]
            return
        where, tags = experiment_id(self._client, experiment, location), {SWEEP_TAG: self._study.name}
        self.run_id = self._client.create_run(where, tags=tags, run_name=self._study.name).info.run_id
        self._client.log_dict(self.run_id, self._study.space.content(), "space.json")
        self._study.optuna.set_user_attr("parent", {"uri": redact(self.uri), "run_id": self.run_id})

    def _close(self, status: str, best_yaml: str | None) -> None:
        best = self._study.best()
        if best is not None and best_yaml is not None:
            self._client.log_metric(self.run_id, self._study.space.metric, best.value)
            self._client.set_tag(self.run_id, "lrtrain.best", str(best.user_attrs["point"]))
            self._client.log_text(self.run_id, best_yaml, "best.yaml")
        self._client.set_terminated(self.run_id, status)

    def _reach(self, act: Callable[[], None]) -> None:
        quiet()
        try:
            act()
        except Exception as error:  # MLflow, its database and the network raise what they like
            print(f"MLflow at {redact(self.uri)} has no record of the sweep as a whole: {reason(error, self.uri)}")


def _own(logger: object) -> Mapping[str, Any] | None:
    """The `MLflowLogger` of a value of `trainer.logger`."""
    for item in logger if isinstance(logger, list) else [logger]:
        if isinstance(item, Mapping) and item.get("class_path") == LOGGER:
            return item
    return None
