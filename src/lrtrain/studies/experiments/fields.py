"""Taking values out of a mapping of a YAML file, and refusing, with file and key, what is not as it should be."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.hints import near


class Fields:
    """The keys of one mapping in a file; `where` is the mapping's own key.

    Raises:
        UserError: from the constructor for a key that is not among `known` or is no mapping, from the others for a
            value of another kind.
    """

    def __init__(self, file: Path, content: Any, known: Sequence[str], where: str = "") -> None:
        self.file, self.where = file, where
        if not isinstance(content, Mapping):
            at = f"{where}: " if where else ""
            raise UserError(f"{file}: {at}expected keys with their values, got {content!r}")
        self.content = content
        for key in content:
            if key not in known:
                raise UserError(f"{file}: {self.path(str(key))}: unknown key; {near(str(key), known)}")

    def path(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def refuse(self, key: str, wanted: str) -> UserError:
        got = repr(self.content[key]) if key in self.content else "nothing"
        return UserError(f"{self.file}: {self.path(key)}: expected {wanted}, got {got}")

    def text(self, key: str, default: str | None = None) -> str:
        value = self.content.get(key, default)
        if not isinstance(value, str) or (not value and default is None):
            raise self.refuse(key, "a text")
        return value

    def choice(self, key: str, choices: Sequence[str], default: str) -> str:
        value = self.text(key, default)
        if value not in choices:
            raise self.refuse(key, f"one of {', '.join(choices)}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.content.get(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false")
        return value

    def whole(self, key: str, default: int | None = None, least: int = 0) -> int:
        value = self.content.get(key, default)
        if type(value) is not int or value < least:
            raise self.refuse(key, f"a whole number of at least {least}")
        return value

    def number(self, key: str) -> float:
        value = self.content.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise self.refuse(key, "a number above 0")
        return float(value)

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.content.get(key, {})
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise self.refuse(key, "keys with their values")
        return value

    def items(self, key: str, kind: type | tuple[type, ...], wanted: str) -> list[Any]:
        value = self.content.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            raise self.refuse(key, f"a list, each item {wanted}")
        return value

    def files(self, key: str) -> tuple[Path, ...]:
        """Paths, in the file relative to the file; from then on to the working directory."""
        found = []
        for name in self.items(key, str, "the path of a YAML file"):
            path = Path(os.path.normpath(self.file.parent / name))
            if not path.is_file():
                raise UserError(f"{self.file}: {self.path(key)}: the file {path} does not exist: correct the path")
            found.append(path)
        return tuple(found)
