"""What `metrics.jsonl` of a run holds, apart from what depends on the clock."""

import json
from pathlib import Path
from typing import Any

CLOCK = ("tokens_per_second", "mfu", "seconds", "epoch")
"""Ends of the names of metrics that measure time, or go on between two steps."""


def recorded_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def points(run: Path) -> dict[tuple[int, str], float]:
    """Every point by (step, name); a point that is there twice must be the same."""
    found: dict[tuple[int, str], float] = {}
    for record in recorded_lines(run):
        for name, value in record.get("metrics", {}).items():
            if not name.endswith(CLOCK):
                assert found.setdefault((record["step"], name), value) == value
    return found


def series(run: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of a metric, in the order of the file."""
    lines = recorded_lines(run)
    return [(line["step"], line["metrics"][name]) for line in lines if name in line.get("metrics", {})]


def statuses(run: Path) -> list[str]:
    return [record["status"] for record in recorded_lines(run) if "status" in record]
