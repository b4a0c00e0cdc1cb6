"""One clear line from what the configuration parser says."""

import difflib
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml


class Setting(NamedTuple):
    """One key that the user set, and where."""

    origin: str
    path: str
    value: Any


def one_line(message: str, argv: list[str], known: list[str]) -> str:
    """Says what is wrong, in which file or flag under which key, and the nearest name that would be right.

    Args:
        message: The parser's message, of any number of lines.
        argv: The command line.
        known: Dotted names of all options.
    """
    settings = list(_settings(argv))
    if match := re.search(r"[Oo]ption '([^']+)'|unrecognized arguments: --(\S+)", message):
        group = re.search(r"Group '([^']+)'", message)
        key = match.group(1) or match.group(2).partition("=")[0]
        return _unknown_key(f"{group.group(1)}.{key}" if group else key, settings, known)
    if match := re.search(r"File does not exist: '([^']+)'", message):
        return f"configuration file {match.group(1)} does not exist: check the path"
    if match := re.search(r"following arguments are required: (.+)", message):
        return f"the configuration lacks {match.group(1)}: name a whole recipe, as in --config configs/quickstart.yaml"
    if match := re.search(r"Interpolation key '\.*([^']+)' not found.*?full_key: (\S+)", message, re.S):
        place = _place(match.group(2), settings)
        return f"{place}: ${{{match.group(1)}}} names no key of the configuration; correct the reference"
    if "Problems parsing config" in message:
        file, why = _not_yaml(argv)
        return f"{file} is not valid YAML: {why or _flat(message)}"
    if match := re.search(r"module '([^']+)' has no attribute '([^']+)'", message):
        module, name = match.groups()
        place = _place_of_value(f"{module}.{name}", settings)
        near = difflib.get_close_matches(name, dir(importlib.import_module(module)), n=1)
        return f"{place}: the module {module} has no {name}; " + (f"did you mean {near[0]}?" if near else "check it")
    if match := re.search(r"No module named '([^']+)'", message):
        place = next((_where(s) for s in settings if str(s.value).startswith(match.group(1))), match.group(1))
        return f"{place}: there is no module {match.group(1)}; a class path is a module path and a class name"
    if match := re.search(r'Parser key "([^"]+)":\s+(.+)', message, re.S):
        return f"{_place(match.group(1), settings)}: {_expected(match.group(2))}"
    return _flat(message)


def _settings(argv: list[str]) -> Iterator[Setting]:
    """Every key of the configuration files of a command line and of its flags, in order."""
    for index, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if not equals:
            value = argv[index + 1] if index + 1 < len(argv) else ""
        if flag in ("--config", "-c"):
            try:
                content = yaml.safe_load(Path(value).read_text())
            except (OSError, UnicodeDecodeError, yaml.YAMLError):
                continue
            yield from (Setting(value, path, item) for path, item in _walk(content))
        elif flag.startswith("--"):
            yield Setting("command line", flag[2:], value)


def _walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            path = f"{prefix}.{key}" if prefix else str(key)
            yield path, value
            yield from _walk(value, path)


def _find(key: str, settings: list[Setting]) -> Setting | None:
    """The last setting whose path is, or ends in, a key."""
    return next((s for s in reversed(settings) if s.path == key or s.path.endswith(f".{key}")), None)


def _where(setting: Setting) -> str:
    return f"--{setting.path}" if setting.origin == "command line" else f"{setting.origin}: {setting.path}"


def _place(key: str, settings: list[Setting]) -> str:
    found = _find(key, settings)
    return _where(found) if found else key


def _place_of_value(value: str, settings: list[Setting]) -> str:
    return next((_where(s) for s in reversed(settings) if s.value == value), value)


def _unknown_key(key: str, settings: list[Setting], known: list[str]) -> str:
    found = _find(key, settings)
    path = found.path if found else key
    parent, _, last = path.rpartition(".")
    names = {name.removeprefix(f"{parent}.").split(".")[0] for name in known if name.startswith(f"{parent}.")}
    owner = parent.removesuffix(".init_args")
    for setting in settings:
        if setting.path.replace(".init_args", "") == f"{owner}.class_path".replace(".init_args", ""):
            names |= set(_parameters(str(setting.value)))
    if not names:
        names = {name.split(".")[0] for name in known}
        last = path.split(".")[0]
    where = _where(found) if found else f"--{key}"
    near = difflib.get_close_matches(last, sorted(names), n=1, cutoff=0.5)
    if near:
        return f"{where}: unknown key; did you mean {near[0]}?"
    return f"{where}: unknown key; known here: {', '.join(sorted(names)[:12])}"


def _parameters(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    try:
        return list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
    except (ImportError, AttributeError, ValueError, TypeError):
        return []


def _not_yaml(argv: list[str]) -> tuple[str, str]:
    """The first configuration file that does not parse, and why."""
    for index, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-c"):
            file = value if equals else argv[index + 1]
            try:
                yaml.safe_load(Path(file).read_text())
            except yaml.YAMLError as error:
                mark = getattr(error, "problem_mark", None)
                problem = getattr(error, "problem", None) or "unreadable"
                return file, f"line {mark.line + 1}: {problem}" if mark else problem
            except UnicodeDecodeError:
                return file, "not text in UTF-8"
    return "the configuration", ""


def _expected(text: str) -> str:
    """'expected int, got abc' from a type error of any length."""
    given = re.search(r"(?:Got value|Given value): (.*)", text)
    types = re.findall(r"(?:Expected an?|Expected) (?:<class '([\w.]+)'>|typing\.Literal\[([^\]]+)\])", text)
    if given and types:
        wanted = [name or values for name, values in types if name != "NoneType"]
        return _flat(f"expected {' or '.join(dict.fromkeys(wanted))}, got {given.group(1)}")
    return _flat(text)


def _flat(text: str) -> str:
    text = re.sub(r"Got value: Namespace\(.*", "", " ".join(text.split()))
    return text if len(text) <= 300 else text[:297] + "..."
