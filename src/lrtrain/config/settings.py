"""What the user set, and in which file, flag or environment variable."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lrtrain.config.recipes import find
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.own_modules import VARIABLE
from lrtrain.runtime.patience import WAIT
from lrtrain.runtime.ranks import DECIDED
from lrtrain.runtime.stores import CACHE_SIZE, STAGING
from lrtrain.runtime.yaml_file import content_of

ENV_PREFIX = "LRTRAIN"
CONFIG = ("--config", "-c")
OWN_VARIABLES = (f"{ENV_PREFIX}_DEBUG", f"{ENV_PREFIX}_COMMIT", VARIABLE, DECIDED, WAIT, CACHE_SIZE, STAGING)
"""Those with the prefix that are no keys."""


def config_files(argv: Sequence[str]) -> list[str]:
    """What the `--config` flags of a command line name."""
    return [value for flag, value in flags(argv) if flag in CONFIG]


class Setting(NamedTuple):
    """One key that the user set: in a YAML file, as a flag (`--…`) or in the environment (`LRTRAIN_…`)."""

    origin: str
    path: str
    value: Any

    @property
    def key(self) -> str:
        """The path without the `+` by which a list is added to."""
        return self.path.replace("+", "")

    @property
    def in_environment(self) -> bool:
        """Whether a variable sets it, which is weaker than files and flags."""
        return self.origin.startswith(f"{ENV_PREFIX}_")

    @property
    def where(self) -> str:
        """How to point at it: the flag, the variable, or the file and the key."""
        own = self.in_environment or self.origin.startswith("--")
        return self.origin if own else f"{self.origin}: {self.path}"


class Settings(list[Setting]):
    """Everything that the user set, weakest first: environment, then files and flags in their order.

    Raises:
        UserError: a configuration file cannot be read, or holds no settings.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        super().__init__(_from_environment())
        for flag, value in flags(argv):
            if flag in CONFIG:
                self.extend(_from_file(value))
            else:
                self.append(Setting(flag, flag.removeprefix("--"), value))

    def where(self, key: str, value: str | None = None) -> str:
        """Points at the strongest setting whose path is, or ends in, a key; rather at one that has the value."""
        found = [setting for setting in reversed(self) if f".{setting.key}".endswith(f".{key}")]
        return next((s.where for s in found if str(s.value) == value), found[0].where if found else key)

    def holding(self, name: str, key: str) -> str:
        """Points at the strongest setting whose value is a dotted name or begins with it; the key if there is none."""
        return next((s.where for s in reversed(self) if f"{s.value}.".startswith(f"{name}.")), key or name)

    def place(self, key: str) -> str:
        """Where a key, or one below it, was set; as a flag if nowhere."""
        for setting in reversed(self):
            above, found, _ = f".{setting.key}.".partition(f".{key}.")
            if found:
                return setting.where.removesuffix(setting.path) + f"{above}.{key}".lstrip(".")
        return f"--{key}"


def flags(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The flags of a command line with their values; the value is empty where there is none."""
    for index, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag.startswith("-"):
            yield flag, value if equals or index + 1 == len(argv) else argv[index + 1]


def with_files(argv: list[str]) -> list[str]:
    """A command line whose `--config` flags name files where they named shipped ones; the environment's likewise.

    Raises:
        UserError: one names neither.
    """
    if name := os.environ.get(f"{ENV_PREFIX}_CONFIG"):
        os.environ[f"{ENV_PREFIX}_CONFIG"] = _file(name)
    found: list[str] = []
    for argument in argv:
        flag, equals, value = argument.partition("=")
        if found and found[-1] in CONFIG:
            argument = _file(argument)
        elif equals and flag in CONFIG:
            argument = f"{flag}={_file(value)}"
        found.append(argument)
    return found


def _file(name: str) -> str:
    url_or_yaml = any(mark in name for mark in ("://", ": ", "{"))
    return name if url_or_yaml else str(find("", name))


def command_line(configs: Sequence[Path | str], settings: Mapping[str, object]) -> list[str]:
    """The arguments of `lrtrain fit` that files and settings (by dotted key) make."""
    files = [part for file in configs for part in ("--config", str(file))]
    return [*files, *(f"--{key}={as_text(value)}" for key, value in settings.items())]


def as_text(value: object) -> str:
    """A value as `lrtrain fit` takes it on the command line: a string as it is, any other in JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _from_environment() -> Iterator[Setting]:
    for variable, value in os.environ.items():
        if variable == f"{ENV_PREFIX}_CONFIG":
            yield from _from_file(value)
        elif variable.startswith(f"{ENV_PREFIX}_"):
            yield Setting(variable, variable.removeprefix(f"{ENV_PREFIX}_").lower().replace("__", "."), value)


def _from_file(file: str) -> Iterator[Setting]:
    if not Path(file).exists():  # a URL, or YAML itself
        return
    content = content_of(Path(file))
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no settings: a configuration is YAML of the form `key: value`")
    if odd := [key for key in content if not isinstance(key, str)]:
        raise UserError(f"{file}: the key {odd[0]} is no text: a configuration is YAML of the form `key: value`")
    yield from (Setting(file, path, item) for path, item in _walk(content))


def _walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    items = node.items() if isinstance(node, dict) else ()
    below = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in items]
    if isinstance(node, list):
        below = [(f"{prefix}[{index}]", value) for index, value in enumerate(node)]
    for path, value in below:
        yield path, value
        yield from _walk(value, path)
