"""A file whose age tells whether a process gets on: what a liveness probe looks at."""

import contextlib
import errno
import sys
import time
from pathlib import Path

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import NO_ROOM

SECONDS = 1.0
"""Shortest time between two touches of the file."""


class _Heart:
    file: Path | None = None
    beaten = 0.0
    failed = False


def start(file: Path) -> None:
    """Removes what an earlier process left at `file`, and lets every `beat` of this process touch it.

    Raises:
        UserError: the file cannot be made there, or is one that holds something.
    """
    if file.is_file() and file.stat().st_size:
        raise UserError(f"heartbeat.file: {file} holds something, and a heartbeat is empty: name a file of its own")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        file.unlink()
    except OSError as error:
        if error.errno not in (*NO_ROOM, errno.EIO):  # which may pass: `beat` tells
            reason = f"heartbeat.file: cannot write {file}: {error.strerror}"
            raise UserError(f"{reason}; name a file in a folder that can be written") from error
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
    _Heart.file, _Heart.beaten, _Heart.failed = file, 0.0, False


def stop() -> None:
    """Ends the beats of this process; the file stays."""
    _Heart.file = None


def beat() -> None:
    """Touches the file, at most once a second; does nothing in a process that started none.

    To be called wherever work that may take minutes has got on by a piece. A file that cannot be touched is said once
    and ends nothing.
    """
    now = time.monotonic()
    if _Heart.file is None or now - _Heart.beaten < SECONDS:
        return
    _Heart.beaten = now
    try:
        _Heart.file.touch()
    except OSError as error:
        if not _Heart.failed:
            line = f"heartbeat: cannot touch {_Heart.file}: {error.strerror}; a probe will take this run for dead"
            print(line, file=sys.stderr, flush=True)
        _Heart.failed = True
    else:
        _Heart.failed = False
