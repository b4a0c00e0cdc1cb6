"""The processes that read ahead: they end when the training process says so, and at no other signal."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SENT_TO_ALL = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}


@contextmanager
def deaf_from_the_start() -> Iterator[None]:
    """Makes the workers that are started inside `with` deaf before they come to `heed_parent_only`.

    This thread hears what was sent meanwhile at the end.
    """
    if not hasattr(signal, "sigwaitinfo"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SENT_TO_ALL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def heed_parent_only(_: int) -> None:
    """Makes a worker deaf to what a terminal or a batch system sends to every process of a job.

    The training process finishes its step upon such a signal, for which it needs its workers. As `worker_init_fn` of a
    DataLoader; SIGTERM from the parent, which is how a DataLoader ends its own, still ends the worker.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS, where nothing says who sent a signal
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, SENT_TO_ALL)
    threading.Thread(target=_end_when_told, daemon=True).start()


def _end_when_told() -> None:
    while True:
        received = signal.sigwaitinfo(SENT_TO_ALL)
        if received.si_signo == signal.SIGTERM and received.si_pid == os.getppid():
            os._exit(0)
