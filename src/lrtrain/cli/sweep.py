"""`lrtrain sweep`: trains the points of a search space and writes the best one's YAML."""

import argparse
import dataclasses
import math
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lrtrain.cli.arguments import Arguments
from lrtrain.config.recipes import find
from lrtrain.runtime.errors import UserError
from lrtrain.studies.sweep.parameter import plain
from lrtrain.studies.sweep.space import RESERVED, Space, read_space

if TYPE_CHECKING:
    from lrtrain.studies.sweep.study import Study

ROWS = 10


def main(argv: list[str]) -> int:
    """Checks the whole space, works at its study until nothing is left, and tells the best trials."""
    options, overrides = _arguments(argv)
    space = _space(options, overrides)
    name = options.study or space.file.stem
    if Path(name).name != name or name in (".", ".."):
        raise UserError(f"--study is {name!r}: give the name of a folder inside {options.runs}")
    base = yaml.safe_load(check(space, overrides))

    from lrtrain.studies.sweep.parent import Parent, study_logger
    from lrtrain.studies.sweep.study import Study
    from lrtrain.studies.sweep.trials import Effort, work

    runs: Path = options.runs
    logger = study_logger(base["trainer"]["logger"], name, runs)
    study = Study(space, name, options.storage or f"sqlite:///{(runs / 'sweeps.db').absolute()}")
    parent = Parent(study, logger, runs)
    effort = Effort(
        runs, logger, parent.tags(), options.jobs, options.threads, options.timeout, options.keep_checkpoints
    )
    status, best_yaml = "KILLED", None
    try:
        work(study, effort)
        status = "FINISHED"
    finally:
        best_yaml = _write_best(study, runs)
        parent.close(status, best_yaml)
        print(table(study))
        if best_yaml is not None:
            file = runs / name / "best.yaml"
            print(f"\nwrote {file}; train it with\n    lrtrain fit --config {file} --runs {runs}")
    if best_yaml is None:
        reasons = [trial.user_attrs["reason"] for trial in study.trials() if trial.user_attrs.get("reason")]
        raise UserError(f"no trial of the study {name!r} has finished" + (f": {reasons[-1]}" if reasons else ""))
    return 0


def check(space: Space, flags: Collection[str] = ()) -> str:
    """The base configuration as YAML, once every parameter's ends, or all its choices, have been built with it.

    `flags` are the keys of overrides that the command line brought.

    Raises:
        UserError: a key or value of the space that the configuration does not take, with where it stands in the file.
    """
    from lrtrain.config.checked import checked

    try:
        base = checked(space.configs, space.overrides)
    except UserError as error:
        culprit = str(error).partition(":")[0].removeprefix("--")
        key = next((key for key in space.overrides if key not in flags and key.startswith(culprit)), None)
        if key is None or not str(error).startswith("--"):
            raise
        raise UserError(_in_file(space, f"overrides.{key}", str(error))) from error
    if space.seeds:
        checked(space.configs, {**space.overrides, "seed_everything": max(space.seeds)})
    for parameter in space.parameters:
        for value in parameter.ends():
            try:
                checked(space.configs, {**space.overrides, parameter.key: value})
            except UserError as error:
                raise UserError(_in_file(space, f"parameters.{parameter.key}", str(error))) from error
    return base


def table(study: "Study") -> str:
    """The best trials, best first, then how many diverged, failed, and wait."""
    from lrtrain.studies.sweep.trials import point_text

    trials, finished = study.trials(), study.finished()
    width = max(9, len(study.space.metric))
    lines = [f"trial  {study.space.metric:>{width}}  seconds  point"]
    for trial in finished[:ROWS]:
        of = trial.user_attrs
        lines.append(f"{of['point']:>5}  {trial.value:>{width}.4f}  {of['seconds']:>7.0f}  {point_text(of['values'])}")
    diverged, failed = (
        sum(trial.user_attrs.get("status") == status for trial in trials) for status in ("diverged", "failed")
    )
    rest = len(trials) - len(finished) - diverged - failed
    counts = f"{len(finished)} finished, {diverged} diverged, {failed} failed, {rest} not done"
    return "\n".join(["", f"study {study.name}: {counts}", *(lines if finished else [])])


def _arguments(argv: list[str]) -> tuple[Any, dict[str, Any]]:
    parser = Arguments(
        prog="lrtrain sweep",
        allow_abbrev=False,
        description="Trains the points of a search space, each in a process of its own, and writes the best YAML. The "
        "same command goes on where it stopped; on several machines with one --storage it shares the work. Further "
        "flags, as --trainer.max_steps 100, are settings of lrtrain fit for all trials.",
    )
    parser.add_argument(
        "--space",
        type=partial(find, "sweeps"),
        required=True,
        help="YAML: what is varied, over which configuration, how",
    )
    parser.add_argument(
        "--config", type=partial(find, ""), action="append", help="recipe, and overlays: instead of the space's"
    )
    parser.add_argument("--study", help="name of the study (default: the space file's)")
    parser.add_argument("--storage", help="database URL of the studies (default: sqlite, <runs>/sweeps.db)")
    parser.add_argument(
        "--trials", type=_positive, help="number of points, instead of the space's; may be raised later"
    )
    parser.add_argument("--jobs", type=_positive, default=1, help="trials at a time on this machine (default 1)")
    parser.add_argument("--threads", type=_positive, default=1, help="CPU threads of one trial (default 1)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default runs)")
    parser.add_argument("--timeout", type=float, default=math.inf, help="seconds after which no new trial begins")
    parser.add_argument("--keep-checkpoints", action="store_true", help="keep the checkpoints of trials that ended")
    options, rest = parser.parse_known_args(argv)
    return options, _overrides(rest)


def _overrides(rest: list[str]) -> dict[str, Any]:
    """`--key value` and `--key=value` by key."""
    found: dict[str, Any] = {}
    waiting = iter(rest)
    for argument in waiting:
        flag, equals, value = argument.partition("=")
        if not flag.startswith("--"):
            raise UserError(f"{argument}: stands alone; every argument is an option, as in --trainer.max_steps 100")
        if not equals:
            value = next(waiting, "")
            if not value or value.startswith("--"):
                raise UserError(f"{flag}: expected a value")
        if flag.removeprefix("--") in RESERVED:
            raise UserError(f"{flag}: a sweep gives each trial its own; leave it out")
        found[flag.removeprefix("--")] = value
    return found


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number, at least 1, got {text}")
    return int(text)


def _space(options: Any, overrides: dict[str, Any]) -> Space:
    """The space file with what the command line says otherwise."""
    space = read_space(options.space, options.trials)
    for key in overrides:
        if key in {parameter.key for parameter in space.parameters} or (space.seeds and key == "seed_everything"):
            raise UserError(f"--{key}: is varied by {space.file}; leave one out")
    space = dataclasses.replace(
        space,
        configs=tuple(options.config or space.configs),
        overrides={**space.overrides, **{key: plain(yaml.safe_load(text)) for key, text in overrides.items()}},
    )
    if not space.configs:
        raise UserError(f"{space.file}: configs: names no recipe; add one there, or give --config")
    return space


def _in_file(space: Space, part: str, line: str) -> str:
    """A line about a flag, as one about the space file."""
    key = part.partition(".")[2]
    return f"{space.file}: {part}: {line.removeprefix('--').removeprefix(f'{key}: ')}"


def _write_best(study: "Study", runs: Path) -> str | None:
    """Writes the best trial's complete configuration; None if no trial has finished."""
    from lrtrain.config.checked import checked

    best = study.best()
    if best is None:
        return None
    space = study.space
    settings = {**space.overrides, **best.user_attrs["values"], "name": f"{study.name}-best"}
    if space.seeds:
        settings["seed_everything"] = space.seeds[0]
    text = checked(space.configs, settings)
    file = runs / study.name / "best.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return text
