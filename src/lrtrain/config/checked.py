"""A configuration, parsed and built as `lrtrain fit` does it, without data, weights or a run directory."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrtrain.config.settings import command_line
from lrtrain.config.train_parser import Configured


def checked(configs: Sequence[Path], settings: dict[str, Any]) -> str:
    """The complete configuration that files and settings (by dotted key) make, as YAML that `--config` takes.

    Raises:
        UserError: what `lrtrain fit` would refuse: an unknown key, or a value of a wrong type or out of range.
    """
    with contextlib.redirect_stderr(io.StringIO()):
        return Configured("fit", command_line(configs, settings)).as_yaml()
