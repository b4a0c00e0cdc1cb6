"""What a YAML file holds."""

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
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"the file {file} does not exist: check the path") from None
    except OSError as error:
        raise UserError(f"the file {file} cannot be read ({error.strerror}): name a YAML file") from error
    except UnicodeDecodeError:
        raise UserError(f"{file} is not valid YAML: not text in UTF-8") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "unreadable"
        raise UserError(f"{file} is not valid YAML: {f'line {mark.line + 1}: ' if mark else ''}{problem}") from error
