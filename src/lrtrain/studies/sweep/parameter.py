"""One dimension of a search space: a configuration key and the values that it may take."""

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.hints import near

KEYS = ("choices", "low", "high", "log", "step", "int")


@dataclass(frozen=True)
class Parameter:
    """A configuration key and what Optuna draws from.

    Args:
        key: dotted, as on the command line.
        distribution: a range with both ends included, or the `choices` as Optuna keeps them (lists as JSON).
        choices: values of any kind; empty for a range.
    """

    key: str
    distribution: CategoricalDistribution | FloatDistribution | IntDistribution
    choices: tuple[Any, ...] = ()

    def grid(self) -> list[Any]:
        """All values, in order; empty for a range of all numbers between two."""
        of = self.distribution
        if isinstance(of, CategoricalDistribution):
            return list(self.choices)
        if of.step is None or of.log:
            return []
        return [of.low + index * of.step for index in range(round((of.high - of.low) / of.step) + 1)]

    def ends(self) -> list[Any]:
        """The values whose validity says most of the others': all choices, or both ends of the range."""
        of = self.distribution
        return list(self.choices) if isinstance(of, CategoricalDistribution) else [of.low, of.high]

    def takes(self, value: Any) -> bool:
        """Whether the value is one of the choices, or in the range (and on its steps)."""
        of = self.distribution
        if isinstance(of, CategoricalDistribution):
            return _stored(value) in of.choices
        if isinstance(value, bool) or not isinstance(value, int | float) or not of.low <= value <= of.high:
            return False
        return (
            of.step is None or of.log or math.isclose(steps := (value - of.low) / of.step, round(steps), abs_tol=1e-9)
        )

    def suggest(self, trial: Trial) -> Any:
        """A value by the trial's sampler, or the one that the trial is fixed to."""
        of = self.distribution
        if isinstance(of, CategoricalDistribution):
            return self.choices[of.choices.index(trial.suggest_categorical(self.key, of.choices))]
        if isinstance(of, IntDistribution):
            return trial.suggest_int(self.key, of.low, of.high, step=of.step, log=of.log)
        return trial.suggest_float(self.key, of.low, of.high, step=of.step, log=of.log)

    def stored(self, value: Any) -> Any:
        """A value as Optuna keeps it."""
        return _stored(value) if self.choices else value


def parse_parameter(where: str, key: str, content: object) -> Parameter:
    """A parameter of a space file.

    Raises:
        UserError: keys that are missing, unknown or exclude each other, or what Optuna says against a range.
    """
    at = f"{where}: parameters.{key}"
    for name in content if isinstance(content, Mapping) else ():
        if name not in KEYS:
            raise UserError(f"{at}.{name}: unknown key; {near(str(name), KEYS)}")
    if not isinstance(content, Mapping) or not ("choices" in content or {"low", "high"} <= content.keys()):
        raise UserError(f"{at}: give choices: [...], or low: and high:")
    if "choices" in content:
        return _choices(at, key, content)
    log, integer = (_flag(at, content, name) for name in ("log", "int"))
    numbers = {name: _number(at, content, name, integer) for name in ("low", "high", "step") if name in content}
    integer = integer or ("step" in numbers and all(isinstance(number, int) for number in numbers.values()))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a range ends at its last step
            return Parameter(key, (IntDistribution if integer else FloatDistribution)(log=log, **numbers))
    except ValueError as error:  # such as "`low <= high` must hold, but got (low=2, high=1)."
        raise UserError(f"{at}: {str(error).replace('`', '').removesuffix('.')}") from error


def _choices(at: str, key: str, content: Mapping[str, Any]) -> Parameter:
    if len(content) > 1:
        other = next(name for name in content if name != "choices")
        raise UserError(f"{at}: choices and {other} exclude each other: leave one out")
    choices = content["choices"]
    if not isinstance(choices, list) or not choices:
        raise UserError(f"{at}.choices: expected a list of values, got {choices!r}")
    stored = [_stored(choice) for choice in choices]
    for index, choice in enumerate(choices):
        if stored[index] in stored[:index]:
            raise UserError(f"{at}.choices: {choice!r} stands there twice")
    return Parameter(key, CategoricalDistribution(stored), tuple(choices))


def _number(at: str, content: Mapping[str, Any], name: str, whole: bool) -> Any:
    value = content[name]
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or (whole and value != int(value)):
        raise UserError(f"{at}.{name}: expected a {'whole ' if whole else ''}number, got {value!r}")
    return int(value) if whole else value


def _flag(at: str, content: Mapping[str, Any], name: str) -> bool:
    value = content.get(name, False)
    if not isinstance(value, bool):
        raise UserError(f"{at}.{name}: expected true or false, got {value!r}")
    return value


def _stored(choice: Any) -> Any:
    return choice if choice is None or isinstance(choice, bool | int | float | str) else json.dumps(choice)
