"""The space file of a sweep: what is varied, how it is sampled, and which metric is the best."""

import dataclasses
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

    def points(self) -> list[dict[str, Any]]:
        """The grid's points, in the order of the file, the last parameter first to change; none for other samplers."""
        if self.sampler != "grid":
            return []
        keys = [parameter.key for parameter in self.parameters]
        points = itertools.product(*(parameter.grid() for parameter in self.parameters))
        return [dict(zip(keys, point, strict=True)) for point in itertools.islice(points, self.trials)]

    def content(self) -> dict[str, Any]:
        """What makes two spaces the same, as plain JSON values: all but their file's name and the number of trials.

        Raises:
            UserError: a configuration file cannot be read.
        """
        content = dataclasses.asdict(self)
        del content["file"], content["trials"]
        content["configs"] = [content_of(path) for path in self.configs]
        content["parameters"] = {parameter.pop("key"): parameter for parameter in content["parameters"]}
        return dict(json.loads(json.dumps(content, default=str)))


def read_space(file: Path, trials: int | None = None) -> Space:
    """Reads a space file; `trials` goes before the file's.

    Raises:
        UserError: the file cannot be read, or a key or value in it cannot be.
    """
    content = _load(file) | ({} if trials is None else {"trials": trials})
    for key in content:
        if key not in KEYS:
            raise UserError(f"{file}: {key}: unknown key; {near(str(key), KEYS)}")
    stated = content.get("parameters")
    if not isinstance(stated, Mapping) or not stated:
        raise UserError(f"{file}: parameters: the space is empty; name a configuration key with choices: or low: high:")
    parameters = tuple(parse_parameter(str(file), str(key), item) for key, item in stated.items())
    sampler = _one_of(file, content, "sampler", SAMPLERS, "grid")
    overrides, seeds = _overrides(file, content, parameters), _seeds(file, content)
    for key in (*(parameter.key for parameter in parameters), *overrides):
        if seeds and key == "seed_everything":
            raise UserError(f"{file}: seeds and {key} exclude each other: leave one out")
    return Space(
        file,
        _configs(file, content),
        parameters,
        overrides,
        metric=str(content.get("metric", "val/loss")),
        mode=_one_of(file, content, "mode", MODES, "min"),
        sampler=sampler,
        seed=_whole(file, "seed", content.get("seed", 0), least=0),
        trials=_trials(file, content, sampler, parameters),
        seeds=seeds,
    )


def _load(file: Path) -> dict[str, Any]:
    content = content_of(file)
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no search space: give at least parameters:")
    return content


def _configs(file: Path, content: Mapping[str, Any]) -> tuple[Path, ...]:
    stated = content.get("configs", [])
    if not isinstance(stated, list) or not all(isinstance(item, str) for item in stated):
        raise UserError(f"{file}: configs: expected a list of files, got {stated!r}")
    return tuple(file.parent / item for item in stated)


def _overrides(file: Path, content: Mapping[str, Any], parameters: tuple[Parameter, ...]) -> dict[str, Any]:
    stated = content.get("overrides", {})
    if not isinstance(stated, dict):
        raise UserError(f"{file}: overrides: expected dotted keys with values, got {stated!r}")
    varied = [parameter.key for parameter in parameters]
    for part, keys in (("parameters", varied), ("overrides", stated)):
        for key in keys:
            if key in RESERVED:
                raise UserError(f"{file}: {part}.{key}: a sweep gives each trial its own; leave it out")
    for key in stated:
        if key in varied:
            raise UserError(f"{file}: overrides.{key}: is varied under parameters; leave one out")
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


def _one_of(file: Path, content: Mapping[str, Any], key: str, allowed: tuple[str, ...], default: str) -> str:
    value = content.get(key, default)
    if value not in allowed:
        raise UserError(f"{file}: {key} is {value!r}: {near(str(value), allowed)}")
    return str(value)


def _whole(file: Path, key: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{file}: {key}: expected a whole number, at least {least}, got {value!r}")
    return value
