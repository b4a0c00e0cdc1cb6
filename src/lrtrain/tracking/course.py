"""The lines of `metrics.jsonl`, and which of them still hold after a session went back to an earlier step."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lrtrain.runtime.errors import UserError

TAIL = 2**20  # bytes; of longer records (a whole configuration) the time is not looked for


def records(path: Path, offset: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """The whole lines of a spool from byte `offset` on, as (offset of the line's end, record).

    Raises:
        UserError: a line is no JSON object with a time.
    """
    with open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):  # still being written
                return
            try:
                record = json.loads(line)
                record["time"]
            except (ValueError, KeyError, TypeError) as error:
                advice = "remove it, and mlflow.json beside it"
                raise UserError(f"{path}: the line at byte {offset} is damaged: {advice}") from error
            offset += len(line)
            yield offset, record


def last_time(path: Path) -> int | None:
    """When the last record was written, in milliseconds since 1970, without reading the others; None where none was."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            *_, last, _ = file.read().split(b"\n")
        return int(json.loads(last)["time"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def surviving(path: Path, after: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records beyond byte `after` that make up the run's present course, as `records` gives them.

    A session that was resumed after S steps supersedes what was logged at later ones, and the parameters, tags and
    texts of earlier sessions that had themselves been resumed after S or more.
    """
    ahead = [(end, record["resumed"]) for end, record in records(path) if "resumed" in record]
    begun = 0
    for end, record in records(path):
        while ahead and ahead[0][0] <= end:
            begun = ahead.pop(0)[1]
        always = "run" in record or "status" in record
        if end > after and (always or _step(record, begun) <= min((step for _, step in ahead), default=math.inf)):
            yield end, record


def newest_course(path: Path) -> int:
    """The offset behind the last record by which a session superseded anything; 0 where none did."""
    course = begun = 0
    furthest: float = 0
    for end, record in records(path):
        if "resumed" in record:
            begun = record["resumed"]
            if furthest > begun:
                course, furthest = end, begun
        elif "lost" in record:
            furthest = math.inf
        elif not {"run", "status", "tags"} & record.keys():
            furthest = max(furthest, _step(record, begun))
    return course


def _step(record: dict[str, Any], begun: int) -> int:
    """The step that a record is of: what a session says of itself belongs to its first one."""
    return int(record.get("step", begun + 1))
