"""One dimension of a search space: a configuration key and the values that it may take."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.hints import near

if TYPE_CHECKING:
    from optuna.trial import Trial

KEYS = ("choices", "low", "high", "log", "step", "int")
# YAML 1.1 takes 1e-3, without a point, for a string.
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


@dataclass(frozen=True)
class Parameter:
    """A configuration key with `choices`, or with the range `low` to `high`, both included.

    Args:
        key: dotted, as on the command line.
        choices: values of any kind; empty for a range.
        low: the range's least value.
        high: its greatest.
        log: uniform in the logarithm.
        step: the distance of neighboring values, counted from `low`; None for all numbers between.
        integer: whole numbers.
    """

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    integer: bool = False

    def grid(self) -> list[Any]:
        """All values, in order; empty for a range of all numbers between two."""
        if self.choices:
            return list(self.choices)
        step = self.step or (1 if self.integer and not self.log else None)
        if step is None:
            return []
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return [self.low + index * step for index in range(count)]

    def ends(self) -> list[Any]:
        """The values whose validity says most of the others': all choices, or both ends of the range."""
        return list(self.choices) or [self.low, self.high]

    def suggest(self, trial: "Trial") -> Any:
        """A value by the trial's sampler, or the one that the trial is fixed to."""
        if self.choices:
            stored = [_stored(choice) for choice in self.choices]
            return self.choices[stored.index(trial.suggest_categorical(self.key, stored))]
        if self.integer:
            return trial.suggest_int(self.key, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)

    def stored(self, value: Any) -> Any:
        """A value as Optuna keeps it."""
        return _stored(value) if self.choices else value


def parse_parameter(where: str, key: str, content: object) -> Parameter:
    """A parameter of a space file.

    Raises:
        UserError: keys that are missing, unknown or exclude each other, or values out of range.
    """
    at = f"{where}: parameters.{key}"
    if not isinstance(content, Mapping):
        raise UserError(f"{at}: give choices: [...], or low: and high:")
    for name in content:
        if name not in KEYS:
            raise UserError(f"{at}.{name}: unknown key; {near(str(name), KEYS)}")
    if "choices" in content:
        return _choices(at, key, content)
    if "low" not in content or "high" not in content:
        raise UserError(f"{at}: give choices: [...], or low: and high:")
    numbers = {name: _number(f"{at}.{name}", content[name]) for name in ("low", "high", "step") if name in content}
    low, high, step = numbers["low"], numbers["high"], numbers.get("step")
    log, integer = _flag(at, content, "log"), _flag(at, content, "int")
    if low > high:
        raise UserError(f"{at}: low {low:g} is above high {high:g}: exchange them")
    if log and low <= 0:
        raise UserError(f"{at}: low {low:g} has no logarithm: give a positive one, or leave log out")
    if log and step is not None:
        raise UserError(f"{at}: log and step exclude each other: leave one out")
    if step is not None and step <= 0:
        raise UserError(f"{at}: step {step:g} must be positive")
    if integer:
        for name, number in numbers.items():
            if number != int(number):
                raise UserError(f"{at}.{name}: expected a whole number, got {number:g}")
        low, high, step = int(low), int(high), step and int(step)
    return Parameter(key, (), low, high, log, step, integer)


def plain(value: Any) -> Any:
    """A number where YAML has read one like 1e-3 as a string; lists and mappings in depth."""
    if isinstance(value, str) and EXPONENT.fullmatch(value):
        return float(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def _choices(at: str, key: str, content: Mapping[str, Any]) -> Parameter:
    if len(content) > 1:
        other = next(name for name in content if name != "choices")
        raise UserError(f"{at}: choices and {other} exclude each other: leave one out")
    choices = content["choices"]
    if not isinstance(choices, list) or not choices:
        raise UserError(f"{at}.choices: expected a list of values, got {choices!r}")
    choices = plain(choices)
    known: list[Any] = []
    for choice in choices:
        if _stored(choice) in known:
            raise UserError(f"{at}.choices: {choice!r} stands there twice")
        known.append(_stored(choice))
    return Parameter(key, tuple(choices))


def _number(at: str, value: object) -> float:
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{at}: expected a number, got {value!r}")
    return value


def _flag(at: str, content: Mapping[str, Any], name: str) -> bool:
    value = content.get(name, False)
    if not isinstance(value, bool):
        raise UserError(f"{at}.{name}: expected true or false, got {value!r}")
    return value


def _stored(choice: Any) -> Any:
    return choice if choice is None or isinstance(choice, bool | int | float | str) else json.dumps(choice)
