"""The state of an unfinished preparation: saved as one file, so that it is there whole or not at all."""

import errno
import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from lrtrain.data.manifest import PROGRESS, SPLITS
from lrtrain.data.shards import ShardWriter
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import unfinished, write_atomically

TOKENIZER = "tokenizer.json"
LOCK = ".lock"


@dataclass
class Progress:
    """How far a preparation has come: document `position` of part number `part` is the last one in the writers.

    `request` and `files` (name and size of each part) are what it was begun with; `writers` and `pending` are the
    state of the two `ShardWriter`s.
    """

    request: dict[str, Any]
    files: list[list[Any]]
    part: int = 0
    position: int = 0
    writers: dict[str, dict[str, Any]] = field(default_factory=dict)
    pending: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> "Progress | None":
        """The progress in `folder`; None if nothing was begun there. Raises UserError if it is damaged."""
        try:
            with np.load(folder / PROGRESS, allow_pickle=False) as saved:
                state = json.loads(saved["state"].tobytes())
                return cls(**state, pending={name: saved[name] for name in SPLITS if name in saved})
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{folder / PROGRESS} is damaged: delete {folder} and prepare again") from error

    def save(self, folder: Path, writers: dict[str, ShardWriter] | None = None) -> None:
        if writers is not None:
            self.writers = {name: writer.state() for name, writer in writers.items()}
            self.pending = {name: writer.pending() for name, writer in writers.items()}
        state = {key: getattr(self, key) for key in ("request", "files", "part", "position", "writers")}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, state=np.frombuffer(json.dumps(state).encode(), np.uint8), **self.pending)
        write_atomically(folder / PROGRESS, buffer.getvalue())

    def restore(self, writers: dict[str, ShardWriter]) -> None:
        for name, state in self.writers.items():
            writers[name].restore(state, self.pending[name])

    @property
    def begun(self) -> bool:
        """Whether any document has been saved: before that, another request may take the folder over."""
        return bool(self.writers)

    def check(self, folder: Path, request: dict[str, Any], files: list[list[Any]]) -> None:
        """Raise UserError if `request` or the files it names are not what this was begun with."""
        for key, wanted in request.items():
            if (begun := self.request.get(key)) != wanted:
                raise UserError(
                    f"{folder} holds an unfinished preparation of another request, {key} is {begun} there "
                    f"and {wanted} in the request: finish that one, name another folder, or delete it"
                )
        if self.files != files:
            changed = next(old or new for old, new in zip_longest(self.files, files) if old != new)
            raise UserError(
                f"the sources have changed since {folder} was begun ({changed[0]}): delete {folder} and prepare again"
            )


def clear(folder: Path) -> None:
    """Delete what a preparation has written into `folder`, and nothing else."""
    for name in SPLITS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for file in (folder / TOKENIZER, folder / PROGRESS, unfinished(folder / PROGRESS)):
        file.unlink(missing_ok=True)


def refuse_foreign(folder: Path) -> None:
    """Raise UserError if what is about to be written into `folder` is there and nobody's preparation."""
    for name in (*SPLITS, TOKENIZER):
        if (folder / name).exists():
            raise UserError(f"{folder / name} exists and is not from a preparation: name an empty or a new folder")


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes from preparing in `folder` meanwhile; wait, and say so, if one is at it."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Another process is preparing {folder}: waiting for it", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the operating system says about writing into `folder` into a line for the user."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"no space left while writing {folder} ({error.strerror}): free some and run the same "
                "command again, it goes on where it stopped"
            ) from error
        raise UserError(
            f"cannot write {error.filename or folder}: {error.strerror}: name a folder that can be written"
        ) from error
