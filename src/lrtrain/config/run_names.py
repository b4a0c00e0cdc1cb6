"""What a path or a run's name means: a place on this disk."""

import os
from pathlib import Path

RUNS = "LRTRAIN_RUNS"
"""The variable of the key `runs`."""


def place_of(named: str | Path) -> Path | None:
    """The path itself, or what has this name (`quickstart/0001`) in the folder of runs; None where neither is there."""
    for path in (Path(named), Path(os.environ.get(RUNS, "runs"), named)):
        if path.exists():
            return path
    return None
