"""Processes of a run that stop answering: who they are, told once, with an exit code that asks for a restart.

A collective of torch fails on every process that is left, each with a text of its own. These meet once more, where
torch's processes know of each other (its store), sign, and see who did not. One that ended with an error of its own
has left a note there.
"""

import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from lrtrain.runtime import first_to_end
from lrtrain.runtime.errors import TemporaryError
from lrtrain.runtime.first_to_end import exit_code_here

SECONDS_TO_SIGN = 5.0
"""How long the others are waited for: a collective ends on all of them within a step."""
SECONDS_TO_SAVE = 600.0
"""How long the one that speaks for all may take to save what it can: a launcher ends it when another one ends."""

_OF_A_CONNECTION = re.compile(
    r"timed? ?out|timeout|connection (was |has been )?(closed|reset|refused|aborted)|broken pipe|read error|write error"
    r"|socket closed|no route to host|unreachable|remote process exited|communicator was aborted|got 0 bytes",
    re.IGNORECASE,
)


_silent = threading.Event()
"""Set once the store has not answered in time: nothing is asked there any more."""


class LostProcessError(TemporaryError):
    """A process of the run does not answer; only the one that is to print it raises it."""


def is_lost(error: BaseException) -> bool:
    """Whether an error is that of a collective, or of the store, which another process no longer answers."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError):
        return False
    marks = ("gloo", "NCCL", "pair closure")  # the last is gloo's, too
    known = isinstance(error, torch.distributed.DistError) or any(mark in str(error) for mark in marks)
    return known and _OF_A_CONNECTION.search(str(error)) is not None


def introduce() -> None:
    """Leaves this process's host at the store; every process calls it once they are connected."""
    _tell("host", socket.gethostname())
    first_to_end.listen()


def leave_note(exit_code: int, line: str) -> bool:
    """Tells the others that this process ends by an error of its own; whether there was anybody to tell."""
    _tell("ended", [exit_code, line])
    first_to_end.notice()
    # The store may be on a host that is cut off, where a call neither returns nor fails.
    return bool(_within(2 * SECONDS_TO_SIGN, lambda: first_to_end.leave_note(exit_code, line)))


def sign() -> None:
    """Tells the others that this process is left; as soon as it knows that one is lost."""
    first_to_end.notice()
    _tell("left", True)


def who_is_lost(error: BaseException, since: str) -> LostProcessError:
    """Returns what to raise where a collective failed, on the one process that is to speak for those that are left.

    Args:
        error: What the collective raised.
        since: When that was, as text: "15 s after step 40".

    Raises:
        SystemExit: on the other processes, when that one has spoken; and on all of them, with its exit code, where one
            has ended by an error of its own.
    """
    from torch import distributed

    if not distributed.is_initialized():
        return LostProcessError(f"the processes of the run did not come together: {_reason(error)}")
    sign()
    rank, world = distributed.get_rank(), distributed.get_world_size()
    answers = _within(2 * SECONDS_TO_SIGN, lambda: _answers(rank, world))
    if answers is None:  # the store is where the lost process was
        if (note := first_to_end.heard()) is not None:
            if _local_rank() == 0:
                print(f"lrtrain: {first_to_end.told(note)}", file=sys.stderr, flush=True)
            raise SystemExit(exit_code_here(note.exit_code))
        if _local_rank() > 0:
            raise SystemExit(exit_code_here(TemporaryError.exit_code))
        return LostProcessError(f"rank 0 does not answer, {since}: {_reason(error)}")
    left, ended = answers
    if ended:
        (number, (code, line)), *_ = ended.items()
        if _local_rank() == 0:
            print(f"lrtrain: rank {_named(number)} ended with exit code {code}: {line}", file=sys.stderr, flush=True)
        raise SystemExit(exit_code_here(code))
    if rank > min(left):
        patience = timedelta(seconds=SECONDS_TO_SAVE)
        _within(SECONDS_TO_SAVE, lambda: _store().wait([_key("ended", min(left))], patience))
        raise SystemExit(exit_code_here(TemporaryError.exit_code))
    lost = [number for number in range(world) if number not in left]
    if not lost:
        return LostProcessError(
            f"all processes answer, but a collective was not done, {since}: {_reason(error)}; the network failed, or "
            "one of them was busy for longer than the strategy's timeout"
        )
    names = ", ".join(map(_named, lost[:8])) + (f" and {len(lost) - 8} more" if len(lost) > 8 else "")
    subject = f"rank {names} does" if len(lost) == 1 else f"ranks {names} do"
    return LostProcessError(f"{subject} not answer, {since}: {_reason(error)}")


def _reason(error: BaseException) -> str:
    """Torch's text without the place in its sources and without advice."""
    text = re.sub(r"^\[\S+:\d+\] ", "", " ".join(str(error).split()))
    return text.partition(". This is typically")[0][:200]


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def _answers(rank: int, world: int) -> tuple[set[int], dict[int, Any]]:
    """Who has signed, and the notes of those that ended by an error; waits until nobody else can be expected."""
    end = time.monotonic() + SECONDS_TO_SIGN
    while True:
        ended = {n: json.loads(_store().get(_key("ended", n))) for n in range(world) if _has("ended", n)}
        left = {n for n in range(world) if n == rank or _has("left", n)}
        if ended or len(left) == world or time.monotonic() > end:
            return left, ended
        time.sleep(0.05)


def _named(rank: int) -> str:
    host = _within(
        SECONDS_TO_SIGN, lambda: json.loads(_store().get(_key("host", rank))) if _has("host", rank) else None
    )
    return f"{rank} ({host})" if host else str(rank)


def _tell(what: str, value: Any) -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_initialized():
        key = _key(what, torch.distributed.get_rank())
        _within(SECONDS_TO_SIGN, lambda: _store().set(key, json.dumps(value)))


def _has(what: str, rank: int) -> bool:
    return bool(_store().check([_key(what, rank)]))


def _key(what: str, rank: int) -> str:
    return f"lrtrain/{what}/{rank}"


def _store() -> Any:
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()


def _within(seconds: float, act: Callable[[], Any]) -> Any:
    """What `act` returns, or None where it fails or is not done in time: a store on a lost host never answers."""
    result: list[Any] = []
    if _silent.is_set():
        return None

    def run() -> None:
        with contextlib.suppress(RuntimeError):
            result.append(act())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        _silent.set()
    return result[0] if result else None
