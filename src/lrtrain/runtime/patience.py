"""How long a storage that does not answer is waited for, and what is said meanwhile."""

import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from lrtrain.runtime.errors import TemporaryError, UserError
from lrtrain.runtime.liveness import beat

WAIT = "LRTRAIN_STORE_WAIT"
"""Environment variable: seconds for which one request is tried again."""

DEFAULT_WAIT = 300.0
"""Below the ten minutes after which NCCL gives up the other processes, which wait in a collective meanwhile."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0

Result = TypeVar("Result")
_begun: ContextVar[float | None] = ContextVar("begun", default=None)
Lasting = Callable[[Exception], str | Exception | None]
_jitter = random.Random()  # of its own: a pause must not change what a run draws from the global one


def store_wait() -> float:
    """Seconds for which a storage that does not answer is waited for: `LRTRAIN_STORE_WAIT`, or 300."""
    text = os.environ.get(WAIT, "")
    try:
        wait = float(text or DEFAULT_WAIT)
    except ValueError:
        wait = -1.0
    if not 0 <= wait < float("inf"):
        raise UserError(f"{WAIT} is {text}: give seconds, such as 300, or 0 to try once")
    return wait


def persist(action: Callable[[], Result], what: str, lasting: Lasting) -> Result:
    """Returns what `action` returns, calling it again while it fails for a reason that may pass.

    Pauses double from one second to thirty; before each, a line on stderr says what failed and when it is tried again.

    Args:
        action: May be called several times; what a failed call left behind it must not trip over.
        what: Begins every line: `reading s3://bucket/key`.
        lasting: Why trying again cannot mend it, in words or as the exception to raise; None for what may pass.

    Raises:
        UserError: trying again cannot mend it.
        TemporaryError: it still fails after `LRTRAIN_STORE_WAIT` seconds.
    """
    wait, pause, begun = store_wait(), FIRST_PAUSE, _begun.get() or time.monotonic()
    while True:
        try:
            return action()
        except UserError:
            raise
        except Exception as error:
            refusal = lasting(error)
            if refusal is error:
                raise
            if refusal is not None:
                raise (UserError(f"{what}: {refusal}") if isinstance(refusal, str) else refusal) from error
            reason = f"{' '.join(str(error).split())[:200]} ({type(error).__name__})"
            left = wait - (time.monotonic() - begun)
            if left <= 0:
                raise TemporaryError(
                    f"{what} failed for {wait:g} s ({WAIT}): {reason}; start the same command again when the storage "
                    "answers"
                ) from error
        seconds = min(pause * _jitter.uniform(0.75, 1.25), left)
        beat()
        print(f"{what}: {reason}; trying again in {seconds:.1f} s (for {left:.0f} s more)", file=sys.stderr, flush=True)
        time.sleep(seconds)
        pause = min(2 * pause, LONGEST_PAUSE)


@contextmanager
def waiting_since(moment: float) -> Iterator[None]:
    """Counts the time of requests inside `with` from `moment` (`time.monotonic`), as of one who has waited for another
    process that made the same request."""
    token = _begun.set(moment)
    try:
        yield
    finally:
        _begun.reset(token)
