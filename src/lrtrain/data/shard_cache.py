"""Shards of a remote data set on this machine: fetched ahead, compared with the manifest, the oldest removed."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from lrtrain.data.manifest import Chunk, Manifest
from lrtrain.data.shards import check_index, shard_fault
from lrtrain.runtime import stores
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import NO_ROOM
from lrtrain.runtime.patience import waiting_since
from lrtrain.runtime.units import read_memory

DEFAULT_SIZE = "100GB"
IN_USE_SECONDS = 900  # readers open a shard within a few batches after it was fetched, and keep it open
INDEX = "index.json"


class ShardCache:
    """The shards of one split of a remote data set, in a local folder that LitData reads.

    The folder is named after the contents, below `LITDATA_CACHE_DIR` or `~/.cache/lrtrain/chunks`, and shared by all
    processes of a machine: one downloads, the others wait for it. Beyond `LRTRAIN_CACHE_SIZE` (100GB) the shards that
    were not used for longest are removed, of whatever data set, except those of the last fifteen minutes.

    Every function raises UserError for a store that refuses or holds something else than the manifest says, and for a
    full disk, and TemporaryError for a store that does not answer for `LRTRAIN_STORE_WAIT` seconds.
    """

    def __init__(self, url: str, manifest: Manifest, split: str) -> None:
        self.url, self._dtype, self._split = url, manifest.dtype, manifest.split(split)
        self.folder = _root() / self._split.digest[:16]

    def begin(self) -> None:
        """Have LitData's index there, and know how large the cache may become."""
        _limit()
        with _written_to(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        for again in (False, True):
            if again or not (self.folder / INDEX).is_file():
                self._download(INDEX)
            try:
                check_index(self.folder, self._split, self._dtype)
            except UserError as error:
                if again:
                    raise UserError(f"{self.url}: {error}") from error
            else:
                return

    def fetch(self, number: int) -> None:
        """Have shard `number` there, as the manifest describes it."""
        chunk = self._split.chunks[number]
        file, begun = self.folder / chunk.file, time.monotonic()
        lock = FileLock(self.folder / f".{chunk.file}.lock")
        with _written_to(self.folder), lock, waiting_since(begun):
            if shard_fault(file, chunk) is not None:
                _make_room(chunk.bytes)
                self._download_checked(chunk, file)
            os.utime(file)

    def fetch_ahead(self, number: int) -> None:
        """Begin to fetch a shard in a thread; who needs it tries again if that fails."""
        threading.Thread(target=self._try, args=(number,), daemon=True).start()

    def _try(self, number: int) -> None:
        try:
            self.fetch(number)
        except UserError:  # the tries had a line each, and what is wrong comes again
            shard = f"{self.url}/{self._split.chunks[number].file}"
            print(
                f"{shard} could not be fetched ahead: it is tried again when it is needed", file=sys.stderr, flush=True
            )

    def _download_checked(self, chunk: Chunk, file: Path) -> None:
        for attempt in (1, 2):
            self._download(chunk.file)
            if (fault := shard_fault(file, chunk)) is None:
                return
            file.unlink()
            if attempt == 1:
                print(f"shard {self.url}/{chunk.file} {fault}: fetching it again", file=sys.stderr, flush=True)
        raise UserError(f"shard {self.url}/{chunk.file} {fault}: copy it there again, or prepare the data again")

    def _download(self, name: str) -> None:
        url = stores.joined(self.url, name)
        try:
            with _written_to(self.folder):
                stores.download(url, self.folder / name)
        except FileNotFoundError as error:
            raise UserError(f"{url} is missing: copy it there again, or prepare the data again") from error


def _root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("LITDATA_CACHE_DIR") or os.path.join(base, "lrtrain", "chunks"))


def _limit() -> float:
    return read_memory(stores.CACHE_SIZE, os.environ.get(stores.CACHE_SIZE) or DEFAULT_SIZE)


def _make_room(wanted: int) -> None:
    """Removes the shards that were not used for longest until `wanted` bytes more are within the limit."""
    files = []
    for file in _root().glob("*/*"):
        with suppress(FileNotFoundError):  # another process removes some too
            status = file.stat()
            files.append((status.st_mtime, status.st_size, file))
    total, limit = sum(size for _, size, _ in files) + wanted, _limit()
    for used, size, file in sorted(files):
        if total <= limit or time.time() - used < IN_USE_SECONDS:
            return
        if file.suffix in (".bin", ".tmp"):  # the latter of a download that was killed
            with suppress(FileNotFoundError):
                file.unlink()
            total -= size


@contextmanager
def _written_to(folder: Path) -> Iterator[None]:
    """Makes a line of what the system says about writing there."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        where, reason = folder, error.strerror or str(error)
        if error.errno in NO_ROOM:
            line = (
                f"no space left in {where} ({reason}): free some, lower {stores.CACHE_SIZE}, or set LITDATA_CACHE_DIR"
            )
        else:
            line = f"cannot write {where} ({reason}): set LITDATA_CACHE_DIR to a folder that can be written"
        raise UserError(line) from error
