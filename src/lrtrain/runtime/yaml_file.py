"""What a YAML file holds."""

import re
from pathlib import Path
from typing import Any

import yaml

from lrtrain.runtime.errors import UserError

DEEPEST, MOST_VALUES = 64, 100_000
TOO_LARGE = f"has more than {DEEPEST} levels or {MOST_VALUES:,} values: look for an anchor (&) that holds itself"


def content_of(file: Path) -> Any:
    """The content of a YAML file, interpolations as they stand.

    Raises:
        UserError: it does not exist, cannot be read, is not valid YAML, or is too deep or too large.
    """
    try:
        content = value_of(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"the file {file} does not exist: check the path") from None
    except OSError as error:
        raise UserError(f"the file {file} cannot be read ({error.strerror}): name a YAML file") from error
    except UnicodeDecodeError:
        raise UserError(f"{file} is not valid YAML: not text in UTF-8") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "unreadable"
        raise UserError(f"{file} is not valid YAML: {f'line {mark.line + 1}: ' if mark else ''}{problem}") from error
    except RecursionError:
        raise UserError(f"{file} {TOO_LARGE}") from None
    if _is_too_large(content):
        raise UserError(f"{file} {TOO_LARGE}")
    return content


def value_of(text: str) -> Any:
    """What a YAML text holds, 1e-3 a number as in YAML 1.2. Raises yaml.YAMLError."""
    return yaml.load(text, _Loader)


def _is_too_large(content: Any) -> bool:
    """Whether it is, with every alias (*) counted as what it stands for, as each reader of it would."""
    nodes, values = [(content, 0)], 0
    while nodes:
        node, depth = nodes.pop()
        values += 1
        if depth > DEEPEST or values + len(nodes) > MOST_VALUES:
            return True
        below = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        nodes += [(value, depth + 1) for value in below]
    return False


class _Loader(yaml.SafeLoader):
    """Refuses a key that comes twice, of which yaml would take the second without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in found:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value} comes twice", problem_mark=key.start_mark)
            found.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


# YAML 1.1, which yaml reads, takes 1e-3, without a point, for a text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
