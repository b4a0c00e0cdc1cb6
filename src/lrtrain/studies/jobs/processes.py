"""The processes of jobs: started, logged to a file, and ended with the process that started them."""

import contextlib
import ctypes
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

TOLD = (signal.SIGTERM, signal.SIGUSR1)
GRACE = 90.0  # seconds that a process may take to finish its step and save

_running: set["subprocess.Popen[bytes]"] = set()
_mutex = threading.Lock()
_ending = threading.Event()
# Upon the end of its parent a process gets SIGTERM: PR_SET_PDEATHSIG is 1.
_die_with_parent = partial(ctypes.CDLL(None).prctl, 1, signal.SIGTERM) if sys.platform == "linux" else None


class EndedError(Exception):
    """The process was not started, or was ended, because all are."""


@contextlib.contextmanager
def workers(parallel: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for calls of `run`; an exception in the block, such as Ctrl-C, ends all processes before it goes on.

    They get SIGTERM, upon which a fit saves, and are killed after 90 s or at a second Ctrl-C. In the main thread
    SIGTERM and SIGUSR1, Slurm's warning, leave the block as Ctrl-C does, by SystemExit(128 + the signal's number).
    """
    main = threading.current_thread() is threading.main_thread()
    previous = {received: signal.signal(received, _leave) for received in TOLD} if main else {}
    pool = ThreadPoolExecutor(parallel)
    try:
        yield pool
    except BaseException:
        with _mutex:
            _ending.set()
        pool.shutdown(wait=False, cancel_futures=True)
        _end(list(_running))
        raise
    finally:
        pool.shutdown()
        _ending.clear()
        for received, handler in previous.items():
            signal.signal(received, handler)


def run(command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
    """Runs a command with its output appended to `log`, and returns its exit code, or minus the signal's number.

    On Linux the process gets SIGTERM when the thread that waits here goes, even if that was killed.

    Raises:
        EndedError: all processes are being ended.
    """
    with open(log, "ab") as output, _mutex:
        if _ending.is_set():
            raise EndedError
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent,
        )
        _running.add(process)
    try:
        code = process.wait()
    except BaseException:
        _end([process])
        raise
    finally:
        _running.discard(process)
    if _ending.is_set():
        raise EndedError
    return code


def _leave(received: int, _: object) -> None:
    sys.exit(128 + received)


def _end(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    deadline = time.monotonic() + GRACE
    try:
        for process in processes:
            process.terminate()
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            process.kill()  # nothing to one that has ended
