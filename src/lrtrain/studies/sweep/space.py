"""The space file of a sweep: what is varied, how it is sampled, and which metric is the best."""

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from optuna.distributions import distribution_to_json

from lrtrain.config.typed_file import Count, Index, mapping, typed
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.hints import near
from lrtrain.runtime.yaml_file import content_of, value_of
from lrtrain.studies.sweep.parameter import Parameter, parse_parameter

# The sweep gives each trial its own.
RESERVED = ("name", "runs", "ckpt_path", "config")


@dataclass(frozen=True)
class Space:
    """A search space over configurations: what its YAML file states, and what the command line says otherwise.

    Args:
        path: where it is from.
        parameters: what is varied; in the file by configuration key, with `choices`, or `low` and `high`.
        flags: keys of overrides that the command line brought.
        configs: a recipe and its overlays; in the file relative to the file.
        overrides: what is fixed, by dotted configuration key, stronger than the files.
        metric: as it is logged; its last value counts.
        mode: which is better.
        sampler: `tpe` is the tree-structured Parzen estimator.
        seed: of the sampler.
        trials: how many points; a grid has as many as its values make, and at most this many are taken.
        first: values of points that are tried before any is sampled, by configuration key; the sampler draws what a
            point leaves out. Not for a grid.
        seeds: values of `seed_everything` over whose runs a trial's metric is the mean; empty for one run.
    """

    path: Path
    parameters: tuple[Parameter, ...]
    flags: frozenset[str] = frozenset()
    configs: tuple[Path, ...] = ()
    overrides: dict[str, Any] = field(default_factory=dict)
    metric: str = "val/loss"
    mode: Literal["min", "max"] = "min"
    sampler: Literal["grid", "random", "tpe"] = "grid"
    seed: Index = 0
    trials: Count = 0
    first: tuple[dict[str, Any], ...] = ()
    seeds: tuple[Index, ...] = ()

    def points(self) -> list[dict[str, Any]]:
        """A grid's points, in the order of the file, the last parameter first to change; of other samplers `first`."""
        if self.sampler != "grid":
            return list(self.first)
        keys = [parameter.key for parameter in self.parameters]
        points = itertools.product(*(parameter.grid() for parameter in self.parameters))
        return [dict(zip(keys, point, strict=True)) for point in itertools.islice(points, self.trials)]

    def content(self) -> dict[str, Any]:
        """What makes two spaces the same, as plain JSON values: all but their file's name, flags and number of trials.

        Raises:
            UserError: a configuration file cannot be read.
        """
        content = {**vars(self), "configs": [content_of(path) for path in self.configs]}
        content["parameters"] = {p.key: json.loads(distribution_to_json(p.distribution)) for p in self.parameters}
        del content["path"], content["trials"], content["flags"]
        return dict(json.loads(json.dumps(content, default=str)))


def read_space(
    file: Path, trials: int | None = None, configs: Sequence[Path] | None = None, flags: Mapping[str, str] | None = None
) -> Space:
    """Reads a space file.

    Args:
        file: YAML of the keys of `Space`.
        trials: goes before the file's.
        configs: go before the file's.
        flags: overrides as text, by key; they go before the file's.

    Raises:
        UserError: the file cannot be read, or a key or value in it or a flag cannot be.
    """
    content = dict(mapping(content_of(file), file))
    known = {field.name for field in dataclasses.fields(Space)} - {"path", "flags"}
    for key in content.keys() - known:
        raise UserError(f"{file}: {key}: unknown key; {near(str(key), sorted(known))}")
    varied = content.pop("parameters", None)
    if not isinstance(varied, Mapping) or not varied:
        raise UserError(f"{file}: parameters: the space is empty; name a configuration key with choices: or low: high:")
    parameters = tuple(parse_parameter(str(file), str(key), item) for key, item in varied.items())
    content |= {} if trials is None else {"trials": trials}
    space = typed(Space, content, file, path=file, parameters=parameters, flags=frozenset(flags or ()))
    space = dataclasses.replace(
        space,
        configs=tuple(configs or space.configs),
        overrides={**space.overrides, **{key: value_of(text) for key, text in (flags or {}).items()}},
        trials=_trials(space),
    )
    _check_keys(space)
    _check_first(space)
    return space


def _check_keys(space: Space) -> None:
    """Raises UserError for a key that two parts set, or that the sweep sets itself."""
    varied = [parameter.key for parameter in space.parameters]
    for key in (*varied, *space.overrides):
        part = "overrides" if key in space.overrides else "parameters"
        at = f"--{key}" if key in space.flags else f"{space.path}: {part}.{key}"
        if key in RESERVED:
            raise UserError(f"{at}: a sweep gives each trial its own; leave it out")
        if key in varied and key in space.overrides:
            raise UserError(f"{at}: is varied under parameters of {space.path}; leave one out")
        if space.seeds and key == "seed_everything":
            raise UserError(f"{at}: seeds in {space.path} set it; leave one out")
    if len(set(space.seeds)) < len(space.seeds):
        raise UserError(f"{space.path}: seeds: {list(space.seeds)} has one twice")


def _check_first(space: Space) -> None:
    """Raises UserError for a first point that the sampler could not draw, or that no trial is left for."""
    varied = {parameter.key: parameter for parameter in space.parameters}
    if space.first and space.sampler == "grid":
        raise UserError(f"{space.path}: first: a grid has its own order; leave it out, or set sampler: random or tpe")
    if len(space.first) > space.trials:
        raise UserError(f"{space.path}: first: has {len(space.first)} points, and trials is {space.trials}")
    for number, point in enumerate(space.first):
        for key, value in point.items():
            at = f"{space.path}: first.{number}.{key}"
            if key not in varied:
                raise UserError(f"{at}: is not varied under parameters; {near(key, sorted(varied))}")
            if not varied[key].takes(value):
                raise UserError(f"{at}: {value!r} is none of the values under parameters.{key}")


def _trials(space: Space) -> int:
    """The number of points: of a grid all, or as many as are stated. Raises UserError where a sampler needs it."""
    if space.sampler != "grid":
        if not space.trials:
            raise UserError(f"{space.path}: trials: is missing; the sampler {space.sampler} needs the number of trials")
        return space.trials
    for parameter in space.parameters:
        if not parameter.grid():
            raise UserError(f"{space.path}: parameters.{parameter.key}: a grid needs choices: or step:; add one")
    size = math.prod(len(parameter.grid()) for parameter in space.parameters)
    return min(space.trials or size, size)
