"""Files that are whole or absent, whatever happens while they are written."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lrtrain.runtime.errors import UserError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomically(file: Path, content: bytes) -> None:
    """Writes beside `file`, fsyncs, renames: after a crash it is the old file or the new one, never half of one."""
    with replacing(file, unfinished(file)) as out:
        out.write(content)


@contextmanager
def replacing(file: Path, beside: Path) -> Iterator[BinaryIO]:
    """The file `beside`, written inside `with`; whole and on the disk it takes the name of `file`, else it is gone."""
    try:
        with beside.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        beside.replace(file)
    finally:
        with suppress(OSError):  # a folder that cannot be written has nothing of ours in it
            beside.unlink(missing_ok=True)
    fsync_folder(file.parent)


def unfinished(file: Path) -> Path:
    """Where `write_atomically` writes before the file takes its name; a killed process leaves it behind."""
    return file.with_name(f".{file.name}.tmp")


def fsync_folder(folder: Path) -> None:
    """Puts the names in a folder on disk: a rename outlives a power cut only then."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def alone(lock: Path, busy: str) -> Iterator[None]:
    """Keeps out other processes that name the same lock, a file that is there inside `with` alone.

    One that was killed keeps nobody out. Where the file system knows no locks, nobody does.

    Raises:
        UserError: `busy`, where another process is inside.
    """
    with ExitStack() as held:
        while True:
            file = held.enter_context(lock.open("wb"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(busy) from None
            except OSError:  # a file system without locks: nothing to ask
                pass
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                    break  # else its holder went between the two lines above, and the file with it
        held.callback(lock.unlink, missing_ok=True)
        yield


@contextmanager
def writing(what: str, advice: str = "name a file in a folder that can be written") -> Iterator[None]:
    """Tells in a line, `what: no space left on device; advice`, why a file cannot be written inside `with`.

    Raises:
        UserError: the system refuses.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: {error.strerror}; {advice}") from error
