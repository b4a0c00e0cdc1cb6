"""What a YAML file holds."""

import re
from pathlib import Path
from typing import Any

import yaml

from lrtrain.runtime.errors import UserError


def content_of(file: Path) -> Any:
    """The content of a YAML file, interpolations as they stand.

    Raises:
        UserError: it does not exist, cannot be read, or is not valid YAML.
    """
    try:
        return value_of(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"the file {file} does not exist: check the path") from None
    except OSError as error:
        raise UserError(f"the file {file} cannot be read ({error.strerror}): name a YAML file") from error
    except UnicodeDecodeError:
        raise UserError(f"{file} is not valid YAML: not text in UTF-8") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "unreadable"
        raise UserError(f"{file} is not valid YAML: {f'line {mark.line + 1}: ' if mark else ''}{problem}") from error


def value_of(text: str) -> Any:
    """What a YAML text holds, 1e-3 a number as in YAML 1.2. Raises yaml.YAMLError."""
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    pass


# YAML 1.1, which yaml reads, takes 1e-3, without a point, for a text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
