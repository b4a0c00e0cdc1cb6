"""What the user set, in which file, flag or environment variable, and which keys there are."""

import argparse
import dataclasses
import importlib
import inspect
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml

from lrtrain.config.recipes import find

ENV_PREFIX = "LRTRAIN"
CONFIG = ("--config", "-c")


class Setting(NamedTuple):
    """One key that the user set: in a YAML file, as a flag (`--…`) or in the environment (`LRTRAIN_…`)."""

    origin: str
    path: str
    value: Any

    @property
    def where(self) -> str:
        """How to point at it: the flag, the variable, or the file and the key."""
        own = self.origin.startswith(("--", f"{ENV_PREFIX}_"))
        return self.origin if own else f"{self.origin}: {self.path}"


class Settings(list[Setting]):
    """Everything that the user set, weakest first: environment, then files and flags in their order."""

    def __init__(self, argv: list[str], options: list[str]) -> None:
        self.options = options
        super().__init__(_from_environment(options))
        for flag, value in flags(argv):
            if flag in CONFIG:
                self.extend(_from_file(value))
            else:
                self.append(Setting(flag, flag.removeprefix("--"), value))

    def find(self, key: str, value: str | None = None) -> Setting | None:
        """The strongest setting whose path is, or ends in, a key; rather one that has the value, if there is any."""
        found = [s for s in reversed(self) if s.path == key or s.path.endswith(f".{key}")]
        return next((s for s in found if str(s.value) == value), found[0] if found else None)

    def holding(self, name: str) -> Setting | None:
        """The strongest setting whose value is a dotted name or begins with it."""
        return next((s for s in reversed(self) if f"{s.value}.".startswith(f"{name}.")), None)

    def children(self, path: str) -> set[str]:
        """The keys that there are below a path; empty where nothing is known of it."""
        prefix = f"{path}." if path else ""
        names = {name.removeprefix(prefix).split(".")[0] for name in self.options if name.startswith(prefix)}
        owner = path.removesuffix(".init_args").replace(".init_args", "")
        for setting in self:
            stated = setting.path.replace(".init_args", "")
            if path and isinstance(setting.value, str) and stated in (owner, f"{owner}.class_path"):
                names |= _parameters(setting.value)
        return names


def flags(argv: list[str]) -> Iterator[tuple[str, str]]:
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
    found, is_file = [], False
    for argument in argv:
        flag, equals, value = argument.partition("=")
        if is_file:
            argument = _file(argument)
        elif equals and flag in CONFIG:
            argument = f"{flag}={_file(value)}"
        is_file = not is_file and argument in CONFIG
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


def option_names(parser: argparse.ArgumentParser) -> list[str]:
    """Dotted names of a parser's options, fields of optional dataclasses included."""
    names: list[str] = []
    for action in parser._actions:
        if action.dest.endswith("help"):
            continue
        names.append(action.dest)
        hint = getattr(action, "_typehint", None)
        for kind in (hint, *get_args(hint)):
            if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                names += [f"{action.dest}.{field.name}" for field in dataclasses.fields(kind)]
    return names


def _from_environment(options: list[str]) -> Iterator[Setting]:
    variables = {name: f"{ENV_PREFIX}_{name.replace('.', '__').upper()}" for name in options}
    if file := os.environ.get(f"{ENV_PREFIX}_CONFIG"):
        yield from _from_file(file)
    yield from (Setting(var, name, os.environ[var]) for name, var in variables.items() if var in os.environ)


def _from_file(file: str) -> Iterator[Setting]:
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):  # the parser has its own words for it
        return
    yield from (Setting(file, path, item) for path, item in _walk(content))


def _walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    items = node.items() if isinstance(node, dict) else ()
    below = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in items]
    if isinstance(node, list):
        below = [(f"{prefix}[{index}]", value) for index, value in enumerate(node)]
    for path, value in below:
        yield path, value
        yield from _walk(value, path)


def _parameters(class_path: str) -> set[str]:
    module, _, name = class_path.rpartition(".")
    try:
        return set(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
    except (ImportError, AttributeError, ValueError, TypeError):
        return set()
