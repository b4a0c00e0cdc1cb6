"""The MLflow run of a study as a whole, under which its trials are shown."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lrtrain.studies.jobs.launch import is_own
from lrtrain.studies.sweep.study import Study
from lrtrain.tracking.destination import (
    GROUP_TAG,
    connect,
    experiment_id,
    experiment_name,
    quiet,
    reason,
    redact,
    resolve_uri,
)
from lrtrain.tracking.names import shown_name

SWEEP_TAG = "lrtrain.sweep"  # the trials have `lrtrain.study`: the parent is none of the runs to compare


@contextmanager
def parent_run(study: Study, loggers: Sequence[object], best_yaml: Path) -> Iterator[dict[str, str]]:
    """One MLflow run for all workers of a study, where the trials' logger tracks; gives the tags of its children.

    It ends as `FINISHED`, or `KILLED` by an exception, with the best trial so far and `best_yaml`. MLflow that does not
    answer is told in a line, and the trials are tracked without a parent.
    """
    settings = next(item.get("init_args", {}) for item in loggers if is_own(item))
    if settings.get("send") is False:
        yield {}
        return
    runs = best_yaml.parent.parent
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
            where = experiment_id(client, experiment_name(settings.get("experiment")), location)
            tags = {SWEEP_TAG: study.name, GROUP_TAG: settings.get("group") or study.name}
            run_id = client.create_run(where, tags=tags, run_name=study.name).info.run_id
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
                    client.log_metric(run_id, shown_name(study.space.metric), best.value)
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
