"""The space file of a sweep: what is varied, how it is sampled, and which metric is the best."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from optuna.distributions import distribution_to_json

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.hints import near
from lrtrain.runtime.yaml_file import content_of
from lrtrain.studies.sweep.parameter import Parameter, parse_parameter, plain

KEYS = ("configs", "metric", "mode", "sampler", "seed", "trials", "seeds", "overrides", "parameters")
SAMPLERS = ("grid", "random", "tpe")
MODES = ("min", "max")
# The sweep gives each trial its own.
RESERVED = ("name", "runs", "ckpt_path", "config")


@dataclass(frozen=True)
class Space:
    """A search space over configurations, as its YAML file states it.

    Args:
        file: where it is from.
        configs: a recipe and its overlays; in the file relative to the file.
        parameters: what is varied.
        overrides: what is fixed, by dotted configuration key, stronger than the files.
        metric: as it is logged; its last value counts.
        mode: `min` or `max`, which is better.
        sampler: `grid`, `random` or `tpe` (tree-structured Parzen estimator).
        seed: of the sampler.
        trials: how many points; a grid has as many as its values make, and at most this many are taken.
        seeds: values of `seed_everything` over whose runs a trial's metric is the mean; empty for one run.
        flags: keys of overrides that the command line brought.
    """

    file: Path
    configs: tuple[Path, ...]
    parameters: tuple[Parameter, ...]
    overrides: dict[str, Any]
    metric: str
    mode: str
    sampler: str
    seed: int
    trials: int
    seeds: tuple[int, ...]
    flags: frozenset[str] = frozenset()

    def points(self) -> list[dict[str, Any]]:
        """The grid's points, in the order of the file, the last parameter first to change; none for other samplers."""
        if self.sampler != "grid":
            return []
        keys = [parameter.key for parameter in self.parameters]
        points = itertools.product(*(parameter.grid() for parameter in self.parameters))
        return [dict(zip(keys, point, strict=True)) for point in itertools.islice(points, self.trials)]

    def content(self) -> dict[str, Any]:
        """What makes two spaces the same, as plain JSON values: all but their file's name, flags and number of trials.

        Raises:
            UserError: a configuration file cannot be read.
        """
        content = dict(vars(self))
        del content["file"], content["trials"], content["flags"]
        content["configs"] = [content_of(path) for path in self.configs]
        content["parameters"] = {p.key: json.loads(distribution_to_json(p.distribution)) for p in self.parameters}
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
    content = content_of(file)
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no search space: give at least parameters:")
    content |= {} if trials is None else {"trials": trials}
    for key in content:
        if key not in KEYS:
            raise UserError(f"{file}: {key}: unknown key; {near(str(key), KEYS)}")
    stated = content.get("parameters")
    if not isinstance(stated, Mapping) or not stated:
        raise UserError(f"{file}: parameters: the space is empty; name a configuration key with choices: or low: high:")
    parameters = tuple(parse_parameter(str(file), str(key), item) for key, item in stated.items())
    sampler, seeds = _one_of(file, content, "sampler", SAMPLERS), _seeds(file, content)
    space = Space(
        file,
        tuple(configs or _configs(file, content)),
        parameters,
        {**_overrides(file, content), **{key: plain(yaml.safe_load(text)) for key, text in (flags or {}).items()}},
        metric=str(content.get("metric", "val/loss")),
        mode=_one_of(file, content, "mode", MODES),
        sampler=sampler,
        seed=_whole(file, "seed", content.get("seed", 0), least=0),
        trials=_trials(file, content, sampler, parameters),
        seeds=seeds,
        flags=frozenset(flags or ()),
    )
    _check_keys(space)
    return space


def _check_keys(space: Space) -> None:
    """Raises UserError for a key that two parts set, or that the sweep sets itself."""
    varied = [parameter.key for parameter in space.parameters]
    for key in (*varied, *space.overrides):
        part = "overrides" if key in space.overrides else "parameters"
        at = f"--{key}" if key in space.flags else f"{space.file}: {part}.{key}"
        if key in RESERVED:
            raise UserError(f"{at}: a sweep gives each trial its own; leave it out")
        if key in varied and key in space.overrides:
            raise UserError(f"{at}: is varied under parameters of {space.file}; leave one out")
        if space.seeds and key == "seed_everything":
            raise UserError(f"{at}: seeds in {space.file} set it; leave one out")


def _configs(file: Path, content: Mapping[str, Any]) -> tuple[Path, ...]:
    stated = content.get("configs", [])
    if not isinstance(stated, list) or not all(isinstance(item, str) for item in stated):
        raise UserError(f"{file}: configs: expected a list of files, got {stated!r}")
    return tuple(file.parent / item for item in stated)


def _overrides(file: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    stated = content.get("overrides", {})
    if not isinstance(stated, dict):
        raise UserError(f"{file}: overrides: expected dotted keys with values, got {stated!r}")
    return {str(key): plain(value) for key, value in stated.items()}


def _seeds(file: Path, content: Mapping[str, Any]) -> tuple[int, ...]:
    stated = content.get("seeds", [])
    if not isinstance(stated, list):
        raise UserError(f"{file}: seeds: expected a list of whole numbers, got {stated!r}")
    seeds = tuple(_whole(file, "seeds", item, least=0) for item in stated)
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{file}: seeds: {stated} has one twice")
    return seeds


def _trials(file: Path, content: Mapping[str, Any], sampler: str, parameters: tuple[Parameter, ...]) -> int:
    size = 1
    if sampler == "grid":
        for parameter in parameters:
            if not parameter.grid():
                raise UserError(f"{file}: parameters.{parameter.key}: a grid needs choices: or step:; add one")
            size *= len(parameter.grid())
    elif "trials" not in content:
        raise UserError(f"{file}: trials: is missing; the sampler {sampler} needs the number of trials")
    trials = _whole(file, "trials", content.get("trials", size), least=1)
    return min(trials, size) if sampler == "grid" else trials


def _one_of(file: Path, content: Mapping[str, Any], key: str, allowed: tuple[str, ...]) -> str:
    """A value among some, the first where none is stated."""
    value = content.get(key, allowed[0])
    if value not in allowed:
        raise UserError(f"{file}: {key} is {value!r}: {near(str(value), allowed)}")
    return str(value)


def _whole(file: Path, key: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{file}: {key}: expected a whole number, at least {least}, got {value!r}")
    return value
