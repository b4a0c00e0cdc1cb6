"""Reading tracked runs back out of MLflow: their configuration, tags, and metrics as arrays."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.hints import nearest
from lrtrain.tracking.destination import GROUP_TAG, quiet, reason, redact, resolve_uri, sqlite_path
from lrtrain.tracking.names import NULL, joined, legal_name, own_name
from lrtrain.tracking.series import Series, number, read_series

if TYPE_CHECKING:
    from mlflow import MlflowClient

STUDY_TAG = "lrtrain.study"
PARENT_TAG = "mlflow.parentRunId"


@dataclass
class TrackedRun:
    """A run as MLflow holds it.

    `name` is its group (`--name` of `lrtrain fit`), `run_name` the run's own (`quickstart/0001`), `params` the
    flattened configuration as the run's last session had it, values whole, without what is null; `start` and `end` are
    milliseconds since 1970; `last` has the last value of every metric that was logged, `metrics` the points of those
    asked for, `stored` their names in MLflow.
    """

    id: str
    name: str
    run_name: str
    status: str
    start: int
    end: int | None
    params: dict[str, str]
    tags: dict[str, str]
    last: dict[str, float]
    metrics: dict[str, Series] = field(default_factory=dict)
    stored: dict[str, str] = field(default_factory=dict, repr=False)

    def series(self, metric: str) -> Series:
        """The points of a metric that was asked for. Raises UserError, with near names, where the run has none."""
        if metric not in self.metrics:
            raise UserError(f"run {self.run_name} has no metric {metric!r}; {nearest(metric, self.last)}")
        return self.metrics[metric]


def tracked_runs(
    uri: str | None,
    runs: str,
    *,
    names: Sequence[str] = (),
    tags: Mapping[str, str] | None = None,
    study: str | None = None,
    metrics: Sequence[str] = ("*",),
) -> list[TrackedRun]:
    """Reads the finished runs with one of the names, all of the tags and the study; by name as given, then by start.

    A step that was logged twice (by a resumed run) has its last value. A run that only gathers others (a study's
    parent) is left out. A database is read directly, since MLflow makes an object of every point.

    Args:
        uri: MLflow server or database; None: MLFLOW_TRACKING_URI, else the database in `runs`.
        runs: Folder of the runs.
        names: Of the runs; all where empty.
        tags: Tags as the user wrote them.
        study: Name of an `lrtrain sweep` study.
        metrics: Names or patterns (`spectral/*`) of the metrics to read.

    Raises:
        UserError: nothing is tracked there, MLflow does not answer, or a name, tag or study is unknown (with near
            ones) or has no finished run.
    """
    where = resolve_uri(uri, runs)
    wanted = {legal_name(key): value for key, value in (tags or {}).items()}
    wanted |= {STUDY_TAG: study} if study is not None else {}
    with _answering(where) as client:
        found = _search(client, names, wanted)
        if not found:
            raise UserError(_nothing_found(client, names, wanted))
        parents = {run.tags.get(PARENT_TAG) for run in found}
        taken = [run for run in found if run.id not in parents and run.status == "FINISHED"]
        _check_each(taken, names, wanted)
        keys = {run.id: [key for key in run.last if any(fnmatchcase(key, name) for name in metrics)] for run in taken}
        series = read_series(client, where, {run.id: [run.stored[key] for key in keys[run.id]] for run in taken})
    for run in taken:
        found_here = series[run.id]
        run.metrics = {key: found_here[run.stored[key]] for key in keys[run.id] if run.stored[key] in found_here}
    order = {name: index for index, name in enumerate(names)}
    return sorted(taken, key=lambda run: (order.get(run.name, 0), run.start, run.id))


def untracked(uri: str | None, runs: str, names: Sequence[str]) -> list[str]:
    """Those of the names that MLflow does not know. Raises UserError where it does not answer."""
    where = resolve_uri(uri, runs)
    database = sqlite_path(where)
    if database is not None and not database.is_file():
        return list(names)
    with _answering(where) as client:
        return [name for name in names if not _is_known(client, name)]


@contextmanager
def _answering(uri: str) -> "Iterator[MlflowClient]":
    """A client of the MLflow that is meant. Raises UserError where there is none or it does not answer."""
    database = sqlite_path(uri)
    if database is not None and not database.is_file():
        raise UserError(
            f"nothing is tracked in {database}: correct --runs or --tracking-uri, or train with lrtrain fit"
        )
    quiet()
    from mlflow import MlflowClient, MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield MlflowClient(tracking_uri=uri)
    except (MlflowException, SQLAlchemyError, ImportError) as error:
        why = f"MLflow at {redact(uri)} does not answer ({reason(error, uri)})"
        raise UserError(f"{why}: start it, or correct --tracking-uri") from error


def _search(client: "MlflowClient", names: Sequence[str], tags: Mapping[str, str]) -> list[TrackedRun]:
    experiments = {e.experiment_id: e.name for e in _pages(client.search_experiments)}
    for name in names:
        if not _is_known(client, name):
            raise UserError(f"no runs of the name {name!r} are tracked; {nearest(name, _all_names(client))}")
    return [
        TrackedRun(
            id=row.info.run_id,
            name=row.data.tags.get(GROUP_TAG) or experiments[row.info.experiment_id],
            run_name=row.info.run_name,
            status=row.info.status,
            start=row.info.start_time,
            end=row.info.end_time,
            params={key: value for key, value in joined(row.data.params).items() if value != NULL},
            tags=dict(row.data.tags),
            last={own_name(key): number(value) for key, value in row.data.metrics.items()},
            stored={own_name(key): key for key in row.data.metrics},
        )
        for row in _rows(client, experiments, names, tags)
    ]


def _rows(
    client: "MlflowClient", experiments: Mapping[str, str], names: Sequence[str], tags: Mapping[str, str]
) -> Iterator[Any]:
    """MLflow's runs of the names, by their group, or by their experiment where they have none."""

    def search(where: Sequence[str], wanted: Mapping[str, str]) -> Iterator[Any]:
        condition = " and ".join(f"tags.`{key}` = {_quoted(value)}" for key, value in wanted.items())
        return _pages(lambda **page: client.search_runs(list(where), condition, **page))

    if not names:
        yield from search([*experiments], tags)
    for name in names:
        yield from search([*experiments], {**tags, GROUP_TAG: name})
        older = [key for key, experiment in experiments.items() if experiment == name]
        yield from (row for row in (search(older, tags) if older else ()) if GROUP_TAG not in row.data.tags)


def _is_known(client: "MlflowClient", name: str) -> bool:
    if client.get_experiment_by_name(name) is not None:
        return True
    everywhere = [e.experiment_id for e in _pages(client.search_experiments)]
    return bool(client.search_runs(everywhere, f"tags.`{GROUP_TAG}` = {_quoted(name)}", max_results=1))


def _all_names(client: "MlflowClient") -> set[str]:
    return {run.name for run in _search(client, [], {})} - {"Default"}


def _nothing_found(client: "MlflowClient", names: Sequence[str], tags: Mapping[str, str]) -> str:
    if not tags:
        which = f" of the name {', '.join(map(repr, names))}" if names else ""
        return f"no run{which} is tracked: train one with lrtrain fit"
    others = _search(client, names, {})
    of = f" among the runs of the name {', '.join(map(repr, names))}" if names else ""
    for key, value in tags.items():
        values = {run.tags[key] for run in others if key in run.tags}
        if key == STUDY_TAG and value not in values:
            return f"no study {value!r} is tracked{of}; {nearest(value, values)}"
        if not values:
            known = {known for run in others for known in run.tags}
            return f"no run has the tag {key!r}{of}; {nearest(key, known)}"
        if value not in values:
            return f"no run has the tag {key}={value}{of}; {nearest(value, values)}"
    return f"no run has all of {', '.join(f'{key}={value}' for key, value in tags.items())}{of}: leave one out"


def _check_each(runs: list[TrackedRun], names: Sequence[str], tags: Mapping[str, str]) -> None:
    """Raises UserError where nothing, or nothing of one of the names, is left."""
    having = f" with {', '.join(f'{key}={value}' for key, value in tags.items())}" if tags else ""
    if not runs and not names:
        raise UserError(f"no run{having} has finished: let lrtrain fit end first")
    for name in names:
        if not any(run.name == name for run in runs):
            raise UserError(f"no run of the name {name!r}{having} has finished: let lrtrain fit end first")


def _quoted(value: str) -> str:
    if "'" in value and '"' in value:
        raise UserError(f"the tag value {value!r} has both kinds of quotes, which MLflow cannot search for")
    return f'"{value}"' if "'" in value else f"'{value}'"


def _pages(call: Callable[..., Any]) -> Iterator[Any]:
    page = call()
    yield from page
    while page.token:
        page = call(page_token=page.token)
        yield from page
