"""What a YAML may say of a class: its arguments or fields with type, unit, default and meaning, read from the code."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml
from docstring_parser import parse
from units import unit_of

from lrtrain.config.typed_file import WANTED


class Field(NamedTuple):
    """One row of a table."""

    name: str
    kind: str
    unit: str
    default: str
    meaning: str


Names = Mapping[Any, str]
"""Types that have a section of their own -> how they are called there, in Markdown."""


def fields_of(made: Any, names: Names, without: Collection[str] = (), units: bool = True) -> list[Field]:
    """The rows of a class, `without` the arguments that it is given by the code.

    Raises:
        ValueError: a number of ours without a unit, or a field without a meaning.
    """
    hints = _hints(made)
    meanings = documented(made)
    rows = []
    for name, default in _defaults(made).items():
        if name in without:
            continue
        hint = hints.get(name, Any)
        meaning = meanings.get(name, "")
        unit = unit_of(made.__name__, name) if units and has_number(hint) else ""
        if units and (not meaning or unit is None):
            raise ValueError(
                f"{made.__name__}.{name}: say its {'unit in docs/site/units.py' if meaning else 'meaning'}"
            )
        rows.append(Field(name, in_words(hint, names), unit or "", _shown(default), meaning))
    return rows


def _hints(made: Any) -> dict[str, Any]:
    """Field -> type; what its module imports for type checkers alone stays text."""
    annotated = made if dataclasses.is_dataclass(made) else made.__init__
    try:
        return get_type_hints(annotated)
    except NameError:
        return inspect.get_annotations(annotated)


def documented(made: Any) -> dict[str, str]:
    """Argument -> what the docstrings of a class say of it."""
    texts = [inspect.cleandoc(text) for text in (made.__doc__, getattr(made.__init__, "__doc__", "")) if text]
    found = {}
    for text in texts:
        for parameter in parse(text.replace("\nAttributes:", "\nArgs:")).params:
            if parameter.description:
                found.setdefault(parameter.arg_name, plain(parameter.description))
    return found


def introduction(made: Any) -> str:
    """What the docstring says before its sections, as Markdown."""
    text = re.split(r"^(?:Args|Attributes|Raises|Returns):$", inspect.cleandoc(made.__doc__ or ""), flags=re.M)[0]
    return text.strip()


def plain(text: str) -> str:
    """A description in one line of Markdown, without roles of Sphinx."""
    text = " ".join(re.sub(r":\w+:(?=`)", "", text).replace("``", "`").split())
    return re.sub(r"(`[^`]*`)|<", lambda found: found[1] or "&lt;", text)


def _defaults(made: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(made):
        return {
            field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            for field in dataclasses.fields(made)
        }
    parameters = list(inspect.signature(made).parameters.values())
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return {p.name: dataclasses.MISSING if p.default is p.empty else p.default for p in named}


def _shown(default: Any) -> str:
    """A default as YAML writes it."""
    if default is dataclasses.MISSING:
        return "*required*"
    if isinstance(default, tuple):
        default = list(default)
    if dataclasses.is_dataclass(default) or (isinstance(default, list) and any(map(dataclasses.is_dataclass, default))):
        default = [dataclasses.asdict(one) for one in default] if isinstance(default, list) else vars(default)
    if not isinstance(default, bool | int | float | str | list | dict | None):
        return f"`{default}`"
    text = yaml.safe_dump(default, default_flow_style=True, width=1000).removesuffix("...\n").strip()
    return f"`{text}`"


def has_number(hint: Any) -> bool:
    """Whether a value of the type may be a number, or a list of them."""
    if isinstance(hint, type) and issubclass(hint, bool):
        return False
    if isinstance(hint, type):
        return issubclass(hint, int | float)
    if get_origin(hint) in (Literal, Callable) or get_origin(hint) is dict:
        return False
    return any(has_number(inner) for inner in get_args(hint))


def in_words(hint: Any, names: Names) -> str:
    """A type as a reader of YAML calls it."""
    for known, name in names.items():
        if hint == known:
            return name
    if hint is NoneType:
        return "null"
    if hint in WANTED and hint not in (str, bool, int, float, dict, Path, NoneType):
        return WANTED[hint].removeprefix("a ")
    if isinstance(hint, type) and hint.__module__ == "builtins" and not get_args(hint):
        return hint.__name__
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(in_words(one, names) for one in inner))
    if origin in (list, tuple):
        kinds = list(dict.fromkeys(in_words(one, names) for one in inner if one is not Ellipsis))
        return f"list of {' and '.join(kinds)}"
    if origin is dict:
        return f"mapping from {in_words(inner[0], names)} to {in_words(inner[1], names)}"
    if origin is not None and getattr(origin, "__name__", "") in ("Iterable", "Sequence", "Collection"):
        return f"list of {in_words(inner[0], names)}"
    if hint is Any:
        return "any"
    if hint is Path:
        return "path"
    return re.sub(r"\b[a-z_]\w*\.", "", str(getattr(hint, "__name__", hint)))


def table(rows: list[Field], units: bool = True) -> str:
    """The rows as a table in Markdown."""
    heads = ["key", "type", *(["unit"] if units else []), "default", "meaning"]
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        unit = [row.unit] if units else []
        lines.append([f"`{row.name}`", row.kind, *unit, row.default, row.meaning])
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
