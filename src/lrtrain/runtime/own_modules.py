"""Where classes of the user's own are found: in the working directory, and beside the YAML files that name them."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "LRTRAIN_FOLDERS"
"""Hands the folders to the processes of jobs; it is read beside their own command lines."""

_folders: list[str] = []


def find_own_modules(argv: Sequence[str]) -> None:
    """Makes `my_optimizer.MyOptimizer` importable from the working directory and from beside each YAML file of `argv`.

    The folders go to the end of the import path, so that a file called `random.py` there hides no package. Processes
    that Lightning or torchrun starts have the same arguments and do the same; those of jobs get `environment()`.
    """
    named = [*argv, os.environ.get("LRTRAIN_CONFIG", "")]
    files = [Path(argument.rpartition("=")[2]) for argument in named]
    beside = [str(file.parent) for file in files if file.suffix in (".yaml", ".yml") and file.is_file()]
    handed = os.environ.get(VARIABLE, "").split(os.pathsep)
    for folder in map(os.path.abspath, [os.getcwd(), *beside, *filter(None, handed)]):
        if folder not in _folders:
            _folders.append(folder)
        if folder not in sys.path:
            sys.path.append(folder)


def environment() -> dict[str, str]:
    """Returns the environment for a child process, with the same folders at the end of its import path."""
    # Python puts the working directory first for `python -m`, before the packages whose names a user may have taken.
    return {**os.environ, VARIABLE: os.pathsep.join(_folders), "PYTHONSAFEPATH": "1"}
