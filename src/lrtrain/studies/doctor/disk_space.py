"""The disk of the run's folder against a checkpoint: room, and how long a save takes."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lrtrain.runtime.units import duration, short
from lrtrain.studies.doctor.finding import Finding, failed, passed, warned

PIECE = 8 * 2**20
PROBED = 128 * 2**20
"""Bytes that are written to measure the speed, at most."""
LONG = 120.0
"""Seconds of a save from which on it is worth a word."""


def check_disk(
    runs: Path,
    checkpoint: float | None,
    kept: int | None,
    room: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
) -> Iterator[Finding]:
    """Room and speed where checkpoints are written.

    Args:
        runs: The folder of the runs, which need not be there yet.
        checkpoint: Bytes of one; None where there is no configuration.
        kept: How many are there at once, the one being written among them.
        room: Free bytes of a folder.
    """
    folder = next(path for path in (runs.absolute(), *runs.absolute().parents) if path.exists())
    if not folder.is_dir():
        yield failed("disk", f"{folder} is a file", "set --runs to a folder")
        return
    free = room(folder)
    needed = 0 if checkpoint is None or kept is None else checkpoint * kept
    found = f"{short(free)}B free in {folder}"
    if needed > free:
        yield failed(
            "disk",
            f"{found}, and {kept} checkpoints of {short(checkpoint or 0)}B take {short(needed)}B",
            "set --runs to another disk, or checkpoints.keep lower",
        )
        return
    if free < 2 * PIECE:
        yield failed("disk", f"{found}: no room to write a run", "free some, or set --runs to another disk")
        return
    yield passed("disk", found + (f"; {kept} checkpoints take {short(needed)}B" if needed else ""))
    try:
        speed = write_speed(folder, min(PROBED, free // 2))
    except OSError as error:
        yield failed("disk speed", f"{folder} cannot be written: {error.strerror}", "set --runs to another folder")
        return
    found = f"{short(speed)}B/s written and synced"
    if checkpoint is None:
        yield passed("disk speed", found)
    elif (seconds := checkpoint / speed) > LONG:
        yield warned(
            "disk speed",
            f"{found}: a checkpoint of {short(checkpoint)}B takes {duration(seconds)}",
            "raise checkpoints.every_n_steps, set --runs to a faster disk, and give the job that time to stop in",
        )
    else:
        yield passed("disk speed", f"{found}: a checkpoint of {short(checkpoint)}B takes {duration(seconds)}")


def write_speed(folder: Path, most: int, seconds: float = 2.0) -> float:
    """Bytes a second that reach the disk, measured with a file that is gone after; ends after about `seconds`."""
    file = folder / f".lrtrain-doctor-{os.getpid()}"
    piece = os.urandom(PIECE)
    begun, written = time.perf_counter(), 0
    try:
        with file.open("wb", buffering=0) as out:
            while written < most and time.perf_counter() - begun < seconds:
                out.write(piece)
                os.fsync(out.fileno())
                written += len(piece)
        return written / (time.perf_counter() - begun)
    finally:
        file.unlink(missing_ok=True)
