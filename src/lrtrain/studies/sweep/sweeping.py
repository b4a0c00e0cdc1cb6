"""A whole sweep: its space checked, its study worked at until nothing is left, and the best trials told."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import TrialState

from lrtrain.config.train_parser import resolve_config
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import writing
from lrtrain.runtime.table import table
from lrtrain.studies.jobs.job import Resources
from lrtrain.studies.jobs.launch import recording
from lrtrain.studies.sweep.parent import parent_run
from lrtrain.studies.sweep.space import Space
from lrtrain.studies.sweep.study import POINT, REASON, VALUES, Study
from lrtrain.studies.sweep.trials import point_text, work
from lrtrain.tracking.destination import sqlite_uri

ROWS = 10


def sweep(space: Space, name: str, storage: str | None, resources: Resources) -> None:
    """Works at the study of a name, says what it finds, and writes the best trial's YAML to `<runs>/<name>/best.yaml`.

    Args:
        space: What is searched; refused before any trial where a part of it is wrong.
        name: Of the study, and of the folder of its runs.
        storage: A database URL; None for `<runs>/sweeps.db`.
        resources: What the trials may use. Their runs become children of one MLflow run, tracked where the
            configuration says.

    Raises:
        UserError: as of `check`, `Study` and `work`, or no trial has finished.
    """
    runs = resources.runs
    if Path(name).name != name or name in (".", ".."):
        raise UserError(f"--study is {name!r}: give the name of a folder inside {runs}")
    base = yaml.safe_load(check(space))
    loggers = recording(base["trainer"]["logger"], name, runs)
    study = Study(space, name, storage or sqlite_uri(runs / "sweeps.db"))
    file = runs / name / "best.yaml"
    with parent_run(study, loggers, file) as tags:
        try:
            work(study, resources, loggers, tags)
        finally:
            _write_best(study, file)
            print(f"\n{best_trials(study)}")
            if study.best() is not None:
                print(f"\nwrote {file}; train it with\n    lrtrain fit --config {file} --runs {runs}")
    if study.best() is None:
        reasons = [trial.user_attrs[REASON] for trial in study.trials() if trial.user_attrs.get(REASON)]
        raise UserError(f"no trial of the study {name!r} has finished" + (f": {reasons[-1]}" if reasons else ""))


def check(space: Space) -> str:
    """The base configuration as YAML, once every parameter's ends, or all its choices, have been built with it.

    Raises:
        UserError: a key or value of the space that the configuration does not take, with where it stands in the file.
    """
    if not space.configs:
        raise UserError(f"{space.path}: configs: names no recipe; add one there, or give --config")
    try:
        base = resolve_config(space.configs, space.overrides)
    except UserError as error:
        culprit = str(error).partition(":")[0].removeprefix("--")
        stated = [key for key in space.overrides if key not in space.flags and key.startswith(culprit)]
        if not stated or not str(error).startswith("--"):
            raise
        raise _in_file(space, "overrides", stated[0], error) from error
    if space.seeds:
        resolve_config(space.configs, {**space.overrides, "seed_everything": max(space.seeds)})
    for parameter in space.parameters:
        for value in parameter.ends():
            try:
                resolve_config(space.configs, {**space.overrides, parameter.key: value})
            except UserError as error:
                raise _in_file(space, "parameters", parameter.key, error) from error
    return base


def best_trials(study: Study) -> str:
    """How many trials finished, diverged, failed and wait; then the best ones, best first."""
    trials, finished = study.trials(), study.finished()
    failed = sum(trial.state == TrialState.FAIL for trial in trials)
    diverged = sum(trial.state == TrialState.COMPLETE for trial in trials) - len(finished)
    rest = len(trials) - len(finished) - diverged - failed
    counts = f"{len(finished)} finished, {diverged} diverged, {failed} failed, {rest} not done"
    rows = [["trial", study.space.metric, "seconds", "point"]]
    for trial in finished[:ROWS]:
        of = trial.user_attrs
        rows.append([str(of[POINT]), f"{trial.value:.4f}", f"{of['seconds']:.0f}", point_text(of[VALUES])])
    return "\n".join([f"study {study.name}: {counts}", *([table(rows)] if finished else [])])


def _write_best(study: Study, file: Path) -> None:
    """Writes the best trial's complete configuration, if any has finished."""
    best, space = study.best(), study.space
    if best is None:
        return
    settings: Mapping[str, Any] = {**space.overrides, **best.user_attrs[VALUES], "name": f"{study.name}-best"}
    seed = {"seed_everything": space.seeds[0]} if space.seeds else {}
    text = resolve_config(space.configs, {**settings, **seed})
    with writing(f"cannot write {file}", "set --runs to another folder"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def _in_file(space: Space, part: str, key: str, error: UserError) -> UserError:
    """What is said about a flag, as said about the space file."""
    return UserError(f"{space.path}: {part}.{key}: {str(error).removeprefix('--').removeprefix(f'{key}: ')}")
