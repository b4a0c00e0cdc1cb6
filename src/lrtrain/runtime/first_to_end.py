"""The first process that ends by an error of its own tells the others: all end soon, with its exit code.

It leaves a note where torch's processes know of each other, the store of the first one. A thread of every process looks
for it, because a collective that the others are in may fail late or never, and because the store ends with the first
process. A process that does not notice by itself that one is missing is ended by that thread.
"""

import contextlib
import json
import os
import sys
import threading
import time
from typing import Any, NamedTuple

from lrtrain.runtime.ranks import DECIDED

SECONDS_TO_HEAR = 1.0
"""Between two looks for a note."""
SECONDS_TO_NOTICE = 30.0
"""How long a process that heard of a note may stay where it is before its thread ends it."""

_NOTE, _HEARD = "lrtrain/first to end", "lrtrain/heard of it"


class Note(NamedTuple):
    """Which process ended first, with which exit code, and the line that it said."""

    rank: int
    exit_code: int
    line: str


class _Ears:
    thread: threading.Thread | None = None
    stop = threading.Event()
    noticed = threading.Event()
    note: Note | None = None


def listen() -> None:
    """Starts to look for the note of another process; every process calls it once they are connected."""
    from torch import distributed

    stop_listening()
    _Ears.stop, _Ears.noticed, _Ears.note = threading.Event(), threading.Event(), None
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        arguments = (distributed.distributed_c10d._get_default_store(), _Ears.stop, _Ears.noticed)
        _Ears.thread = threading.Thread(target=_look, args=arguments, daemon=True)
        _Ears.thread.start()


def stop_listening() -> None:
    """Ends the thread: at the end of a run, which the first process's store does not outlive."""
    _Ears.stop.set()
    if _Ears.thread is not None:
        _Ears.thread.join(5 * SECONDS_TO_HEAR)
        _Ears.thread = None


def notice() -> None:
    """Tells the thread that this process is about to end, so that it has the time to save."""
    _Ears.noticed.set()


def heard() -> Note | None:
    """The note of another process that ended first, if there is one."""
    return _Ears.note


def leave_note(exit_code: int, line: str) -> bool:
    """Tells the others that this process ends by an error of its own; whether there was anybody to tell.

    The process that has the store stays until they have heard it, for some seconds at most.
    """
    notice()
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return False
    store, rank = torch.distributed.distributed_c10d._get_default_store(), torch.distributed.get_rank()
    with contextlib.suppress(RuntimeError):
        store.compare_set(_NOTE, "", json.dumps([rank, exit_code, line]))
        end = time.monotonic() + 4 * SECONDS_TO_HEAR
        while rank == 0 and store.add(_HEARD, 0) < torch.distributed.get_world_size() - 1 and time.monotonic() < end:
            time.sleep(0.05)
        return True
    return False


def exit_code_here(code: int) -> int:
    """The code to end with: 0 for a process that Lightning started, or it would kill its main process at once.

    The main process ends with the code of the note.
    """
    return 0 if DECIDED in os.environ and int(os.environ.get("LOCAL_RANK") or 0) > 0 else code


def _look(store: Any, stop: threading.Event, noticed: threading.Event) -> None:
    from torch import distributed

    with contextlib.suppress(RuntimeError, ValueError):  # the store is gone, or the group was left
        rank = distributed.get_rank()
        while not stop.wait(SECONDS_TO_HEAR):
            if not store.check([_NOTE]):
                continue
            note = Note(*json.loads(store.get(_NOTE)))
            if note.rank == rank:
                return
            _Ears.note = note
            store.add(_HEARD, 1)
            break
    if (of_another := _Ears.note) is not None and not (noticed.wait(SECONDS_TO_NOTICE) or stop.is_set()):
        if int(os.environ.get("LOCAL_RANK") or 0) == 0:
            print(f"lrtrain: {told(of_another)}", file=sys.stderr, flush=True)
        os._exit(exit_code_here(of_another.exit_code))


def told(note: Note) -> str:
    """The note as a line of another process."""
    return f"rank {note.rank} ended with exit code {note.exit_code}: {note.line}"
