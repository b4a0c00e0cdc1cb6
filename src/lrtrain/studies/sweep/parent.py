"""The MLflow run of a study as a whole, under which its trials are shown."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


@contextmanager
def parent_run(study: Study, logger: object, best_yaml: Path) -> Iterator[dict[str, str]]:
    """One MLflow run for all workers of a study, where the trials' logger tracks; gives the tags of its children.

    It ends as `FINISHED`, or `KILLED` by an exception, with the best trial so far and `best_yaml`. MLflow that does not
    answer is told in a line, and the trials are tracked without a parent.
    """
    own, runs = _own(logger), best_yaml.parent.parent
    assert own is not None
    settings = own.get("init_args", {})
    uri = resolve_uri(settings.get("tracking_uri"), settings.get("root") or runs)
    client: Any = None
    run_id, status = None, "KILLED"
    with _told(uri):
        client, location = connect(uri, runs / study.name / "trial")
        known = study.optuna.user_attrs.get("parent", {})
        if known.get("uri") == redact(uri):
            client.update_run(known["run_id"], status="RUNNING")
            run_id = known["run_id"]
        else:
            where = experiment_id(client, settings.get("experiment") or "lrtrain", location)
            run_id = client.create_run(where, tags={SWEEP_TAG: study.name}, run_name=study.name).info.run_id
            client.log_dict(run_id, study.space.content(), "space.json")
            study.optuna.set_user_attr("parent", {"uri": redact(uri), "run_id": run_id})
    try:
        yield {} if run_id is None else {"mlflow.parentRunId": run_id}
        status = "FINISHED"
    finally:
        if run_id is not None:
            with _told(uri):
                best = study.best()
                if best is not None:
                    client.log_metric(run_id, study.space.metric, best.value)
                    client.set_tag(run_id, "lrtrain.best", str(best.user_attrs["point"]))
                    client.log_text(run_id, best_yaml.read_text(), "best.yaml")
                client.set_terminated(run_id, status)


@contextmanager
def _told(uri: str) -> Iterator[None]:
    quiet()
    try:
        yield
    except Exception as error:  # MLflow, its database and the network raise what they like
        print(f"MLflow at {redact(uri)} has no record of the sweep as a whole: {reason(error, uri)}")


def _own(logger: object) -> Mapping[str, Any] | None:
    """The `MLflowLogger` of a value of `trainer.logger`."""
    for item in logger if isinstance(logger, list) else [logger]:
        if isinstance(item, Mapping) and item.get("class_path") == LOGGER:
            return item
    return None
