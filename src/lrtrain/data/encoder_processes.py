"""Processes that tokenize: texts go to them through a pipe, and tokens come back.

Words from memory (`data/words.py`) hold Python's lock, so threads gain nothing. Each process is a program of its own,
neither forked nor of `multiprocessing`: it takes nothing over from threads, CUDA or a script without a main guard,
needs no shared memory, and ends when the pipe does, which is when its parent ends, however that is.
"""

import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from lrtrain.data.encoder import Encoder
from lrtrain.data.loader_workers import SENT_TO_ALL
from lrtrain.runtime.errors import TemporaryError, UserError

ONE_CORE = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class EncoderProcesses:
    """At most `most` processes that do what `encoder` does; one is started when all others are busy.

    A thread for each hands texts over and waits. Leaving the `with` block ends them, whatever they are at.
    """

    def __init__(self, encoder: Encoder, most: int) -> None:
        self._made_of = encoder.tokenizer, encoder.dtype
        # Processes inherit what their threads block: a signal to all of a job, such as Ctrl-C, is for the parent.
        block = signal.pthread_sigmask, (signal.SIG_BLOCK, SENT_TO_ALL)
        self._threads = ThreadPoolExecutor(most, "encode", *block)
        self._started: list[subprocess.Popen[bytes]] = []
        self._idle: list[subprocess.Popen[bytes]] = []
        self._ended = False

    def submit(self, texts: Sequence[str]) -> Future[list[np.ndarray]]:
        """The tokens of each text and their separator, as `Encoder.documents` gives them.

        Raises what that raises, and a TemporaryError if the process ends before.
        """
        return self._threads.submit(self._documents, texts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended = True
        for process in [*self._started]:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._started:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(BrokenPipeError):  # of what a killed one did not read
                    _there(pipe).close()

    def _documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        try:
            process = self._idle.pop()
        except IndexError:
            process = self._start()
        try:
            _send(texts, process.stdin)
            found = pickle.load(_there(process.stdout))
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise TemporaryError(
                f"a process that tokenizes {_ended_how(process.wait())}: run the same command again, it goes on where "
                "it stopped; if memory was short, with fewer workers"
            ) from error
        self._idle.append(process)
        if isinstance(found, Exception):
            raise found
        return list(found)

    def _start(self) -> "subprocess.Popen[bytes]":
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **ONE_CORE, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            )
        except OSError as error:
            raise UserError(f"cannot start a process that tokenizes ({error.strerror}): give fewer workers") from error
        self._started.append(process)
        if self._ended:
            process.kill()
        with suppress(BrokenPipeError):  # said when its answer is missing
            _send(self._made_of, process.stdin)
        return process


def answer() -> None:
    """What a process does: answer the texts of standard input with their tokens, until it ends."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed is none
    asked: SimpleQueue[Any] = SimpleQueue()
    Thread(target=_read, args=(asked,), daemon=True).start()
    encoder = Encoder(*asked.get())
    encoder.remember_words()
    while True:
        found: list[np.ndarray] | Exception
        try:
            found = encoder.documents(asked.get())
        except Exception as error:
            error.add_note(traceback.format_exc())
            found = error
        _send(found, answers)


def _read(asked: "SimpleQueue[Any]") -> None:
    """Read on while texts are tokenized, so that the end of the input is the end of the process at once."""
    with suppress(EOFError, pickle.UnpicklingError):
        while True:
            asked.put(pickle.load(sys.stdin.buffer))
    os._exit(0)


def _send(content: Any, pipe: IO[bytes] | None) -> None:
    pickle.dump(content, _there(pipe), pickle.HIGHEST_PROTOCOL)
    _there(pipe).flush()


def _there(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _ended_how(code: int) -> str:
    return f"was ended by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"


if __name__ == "__main__":
    answer()
