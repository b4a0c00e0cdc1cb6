"""The finished runs of some names: those that MLflow knows, and others by their own records."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from lrtrain.tracking.names import legal_name
from lrtrain.tracking.recorded import recorded
from lrtrain.tracking.runs import STUDY_TAG, TrackedRun, tracked_runs, untracked


def named_runs(
    uri: str | None,
    runs: str,
    *,
    names: Sequence[str] = (),
    tags: Mapping[str, str] | None = None,
    study: str | None = None,
    metrics: Sequence[str] = ("*",),
) -> list[TrackedRun]:
    """As `tracked_runs`; a name that MLflow does not know is that of a folder of runs with their own records.

    So a folder that was renamed or copied is found under the name that it has, and so are runs without MLflow.

    Raises:
        UserError: as of `tracked_runs`.
    """
    wanted = {legal_name(key): value for key, value in (tags or {}).items()}
    wanted |= {STUDY_TAG: study} if study is not None else {}
    own: dict[str, list[TrackedRun]] = {}
    for name in untracked(uri, runs, [name for name in names if Path(runs, name).is_dir()]):
        folders = sorted(path.parent for path in Path(runs, name).glob("[0-9]" * 4 + "/metrics.jsonl"))
        found = [run for folder in folders if (run := recorded(folder)) is not None and run.status == "FINISHED"]
        own[name] = [_as(name, metrics, run) for run in found if wanted.items() <= run.tags.items()]
    others = [name for name in names if not own.get(name)]
    if names and not others:
        return [run for name in names for run in own[name]]
    tracked = tracked_runs(uri, runs, names=others, tags=tags, study=study, metrics=metrics)
    order = {name: index for index, name in enumerate(names)}
    return sorted([*tracked, *(run for found in own.values() for run in found)], key=lambda run: order.get(run.name, 0))


def _as(name: str, metrics: Sequence[str], run: TrackedRun) -> TrackedRun:
    asked = {key: series for key, series in run.metrics.items() if any(fnmatchcase(key, one) for one in metrics)}
    return replace(run, name=name, metrics=asked)
