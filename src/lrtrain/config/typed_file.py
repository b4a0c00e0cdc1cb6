"""A mapping of a YAML file as a dataclass: the fields are the keys that it takes, their types what may stand there."""

import dataclasses
import functools
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from lrtrain.config.recipes import find
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.hints import near

if TYPE_CHECKING:
    Count: TypeAlias = int
    Index: TypeAlias = int
    Positive: TypeAlias = float
    Share: TypeAlias = float
else:
    from jsonargparse.typing import NonNegativeInt as Index
    from jsonargparse.typing import PositiveInt as Count
    from jsonargparse.typing import restricted_number_type

    Positive = restricted_number_type("Positive", float, [(">", 0), ("<", math.inf)])
    Share = restricted_number_type("Share", float, [(">", 0), ("<=", 1)])

WANTED: dict[Any, str] = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Path: "the path of a YAML file",
    Count: "a whole number of at least 1",
    Index: "a whole number of at least 0",
    Positive: "a number above 0",
    Share: "a share above 0 and at most 1",
    dict: "keys with their values",
    NoneType: "null",
}

Kind = TypeVar("Kind")


def typed(kind: type[Kind], content: Any, file: Path, where: str = "", **given: Any) -> Kind:
    """An object of a dataclass from the mapping at `where` of a file; `given` are fields that do not come from it.

    Fields that are dataclasses, or lists of one, are read alike.

    Raises:
        UserError: as of `stated` and `complete`.
    """
    return complete(kind, {**stated((kind,), content, file, where, tuple(given)), **given}, file, where)


def stated(
    kinds: Iterable[Any],
    content: Any,
    file: Path,
    where: str = "",
    but: Iterable[str] = (),
    beside: Iterable[str] = (),
) -> dict[str, Any]:
    """The values that a mapping states of the fields of some dataclasses, all `but` some, each of its field's type.

    Paths are relative to the file and must exist there, or are names of shipped recipes and overlays. `beside` are keys
    that the caller has taken out, for the hint of near ones.

    Raises:
        UserError: it is no mapping, has a key that is no field, or a value of another type.
    """
    types = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items() if name not in but}
    values = {}
    for key, value in mapping(content, file, where).items():
        if key not in types:
            raise UserError(f"{file}: {_path(where, key)}: unknown key; {near(str(key), [*types, *beside])}")
        values[key] = _value(types[key], value, file, where, key)
    return values


def complete(kind: type[Kind], values: Mapping[str, Any], file: Path, where: str = "") -> Kind:
    """An object of a dataclass from those of the values that are fields of its.

    Raises:
        UserError: a field has no default and no value.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise refused(file, where, name, wanted(get_type_hints(kind)[name]))
    return kind(**{name: values[name] for name in fields if name in values})


def mapping(content: Any, file: Path, where: str = "") -> Mapping[str, Any]:
    """The mapping that stands at `where`. Raises UserError where it is none."""
    if not isinstance(content, Mapping):
        raise UserError(f"{file}: {f'{where}: ' if where else ''}expected keys with their values, got {content!r}")
    return content


def refused(file: Path, where: str, key: str, expected: str, *got: Any) -> UserError:
    """Says what was expected under a key, and what stood there, if anything did."""
    return UserError(f"{file}: {_path(where, key)}: expected {expected}, got {repr(got[0]) if got else 'nothing'}")


def wanted(hint: Any) -> str:
    """A type in words."""
    inner, kind = get_args(hint), get_origin(hint) or hint
    if kind is Literal:
        return f"one of {', '.join(inner)}"
    if kind is tuple:
        many = "a list" if inner[-1] is Ellipsis else f"{len(inner)} items"
        return f"{many}, each{' item' if inner[-1] is Ellipsis else ''} {wanted(inner[0])}"
    if kind in WANTED:
        return WANTED[kind]
    return " or ".join(map(wanted, inner)) or WANTED[dict]


def _value(hint: Any, value: Any, file: Path, where: str, key: str) -> Any:
    """The value as its type has it. The parser takes null and any key of a mapping for whatever type: not here."""
    kind, place = next(iter(get_args(hint)), hint), _path(where, key)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if hint is kind:
            return typed(kind, value, file, place)
        if isinstance(value, list):
            return tuple(typed(kind, item, file, f"{place}[{number}]") for number, item in enumerate(value))
    wrong = (value is None and NoneType not in get_args(hint)) or (
        isinstance(value, Mapping) and not all(isinstance(name, str) for name in value)
    )
    try:
        found: Any = None if wrong else _parser(hint).parse_object({"value": value}).value
    except ArgumentError:
        wrong = True
    if wrong:
        raise refused(file, where, key, wanted(hint), value)
    if hint is Path:
        return _existing(found, file, place)
    return tuple(_existing(path, file, place) for path in found) if hint == tuple[Path, ...] else found


@functools.cache
def _parser(hint: Any) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=dict if get_origin(hint) is dict else hint)
    return parser


def _existing(name: Path, file: Path, place: str) -> Path:
    path = Path(os.path.normpath(file.parent / name))
    if path.is_file():
        return path
    if name.suffix == ".yaml":
        raise UserError(f"{file}: {place}: the file {path} does not exist: correct the path")
    try:
        return find("", name)
    except UserError as error:
        raise UserError(f"{file}: {place}: {error}") from error


def _path(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)
