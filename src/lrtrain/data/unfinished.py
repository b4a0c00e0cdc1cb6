"""The state of an unfinished preparation: saved as one file, so that it is there whole or not at all."""

import io
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from lrtrain.data.manifest import PROGRESS, SPLITS, difference
from lrtrain.data.origin import Origin, changes, tokenizer_changes
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import NO_ROOM, unfinished, write_atomically

TOKENIZER = "tokenizer.json"
LOCK = ".lock"


@dataclass
class Progress:
    """How far a preparation has come: document `position` of part number `part` is the last one in the writers.

    `request` and `files` (`data/origin.py`) are what it was begun with; `writers` holds the states of the two
    `ShardWriter`s, and is empty until a document was saved: before that, another request may take the folder over.
    Under a token limit `marks` holds the places at which it was saved: part, position and the counts of both splits.
    `plan` is the hash of the plan of which this is a share or the merge (`data/shares.py`), empty on one machine.
    """

    request: dict[str, Any]
    files: Origin
    part: int = 0
    position: int = 0
    writers: dict[str, dict[str, Any]] = field(default_factory=dict)
    marks: list[list[Any]] = field(default_factory=list)
    plan: str = ""

    @classmethod
    def load(cls, folder: Path) -> "Progress | None":
        """The progress in `folder`; None if nothing was begun there. Raises UserError if it is damaged."""
        try:
            return cls(**torch.load(folder / PROGRESS, weights_only=True))
        except FileNotFoundError:
            return None
        except (RuntimeError, ValueError, TypeError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(f"{folder / PROGRESS} is damaged: delete {folder} and prepare again") from error

    def save(self, folder: Path) -> None:
        buffer = io.BytesIO()
        torch.save(vars(self), buffer)
        write_atomically(folder / PROGRESS, buffer.getvalue())

    def check(self, folder: Path, request: dict[str, Any], files: Origin) -> None:
        """Raise UserError if `request`, or what it names, is not what this was begun with."""
        if other := difference(self.request, request):
            raise UserError(
                f"{folder} holds an unfinished preparation of another request, {other}: finish that one, name another "
                "folder, or delete it"
            )
        if changed := tokenizer_changes(request["tokenizer"], folder / TOKENIZER) or changes(self.files, files):
            raise UserError(
                f"the sources have changed since {folder} was begun ({changed}): delete {folder} and prepare again"
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
        held = lock.acquire(timeout=0)
    except Timeout:
        print(f"Another process is preparing {folder}: waiting for it", flush=True)
        held = lock.acquire()
    with held:
        yield


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the operating system says about writing into `folder` into a line for the user."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise UserError(
                f"no space left while writing {folder} ({error.strerror}): free some and run the same "
                "command again, it goes on where it stopped"
            ) from error
        raise UserError(
            f"cannot write {error.filename or folder}: {error.strerror}: name a folder that can be written"
        ) from error
