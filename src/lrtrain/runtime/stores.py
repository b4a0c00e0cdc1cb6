"""Objects behind URLs: read, written, listed, uploaded whole, whatever the store; an outage is waited for.

A URL is `s3://bucket/key` (`runtime/s3.py`) or any that fsspec knows (`gs://`, `az://`, `memory://`, `file://`; it may
need a package of its own). Every function may raise, beside what it says itself,

- FileNotFoundError: there is no such object;
- UserError: what trying again cannot mend: credentials, permission, a bucket that does not exist, no space. At once;
- TemporaryError (exit code 75): the store did not answer for `LRTRAIN_STORE_WAIT` seconds (300), with a line on stderr
  before each try.

An object is whole or absent: it appears with its last byte. A folder is not: see `upload_folder`.
"""

import errno
import os
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lrtrain.runtime.errors import TemporaryError, UserError
from lrtrain.runtime.files import NO_ROOM, fsync_folder
from lrtrain.runtime.patience import persist

CACHE_SIZE = "LRTRAIN_CACHE_SIZE"
"""Environment variable: how much of remote data sets is kept on this machine, as 100GB."""

STAGING = "LRTRAIN_STAGING"
"""Environment variable: the folder in which a data set is prepared before it is uploaded."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Stored:
    """An object's size in bytes, and what changes with its content, as the store tells it (an ETag, a time)."""

    size: int
    version: str


def is_remote(path: str | Path) -> bool:
    """Whether this is a URL and not a local name. Raises UserError for what is neither (`s3:/bucket`)."""
    if re.match(r"[a-z][a-z0-9+.-]+:/(?!/)", str(path)):
        raise UserError(f"{path}: a URL has two slashes after the colon, as s3://bucket/folder: correct it")
    return "://" in str(path)


def joined(url: str, name: str) -> str:
    """`url/name`."""
    return f"{url.rstrip('/')}/{name}"


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it. Raises UserError for one that cannot be used here."""
    import fsspec

    register_s3()
    try:
        fs, path = fsspec.url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{url} needs a package that is not installed: {error}") from error
    except ValueError as error:
        raise UserError(f"{url} is no URL of a store: {error}") from error
    return fs, path


def register_s3() -> None:
    """Makes fsspec open s3:// by `runtime/s3.py` everywhere in this process: `fsspec.open`, pyarrow, pandas."""
    import fsspec

    for protocol in ("s3", "s3a"):
        fsspec.register_implementation(protocol, "lrtrain.runtime.s3.S3FileSystem", clobber=True)


def read(url: str) -> bytes:
    """The content of an object."""
    return _on("reading", url, lambda fs, path: bytes(fs.cat_file(path)))


def write(url: str, content: bytes) -> None:
    """Makes or replaces an object."""

    def put(fs: Any, path: str) -> None:
        _make_parent(fs, path)
        fs.pipe_file(path, content)

    _on("writing", url, put)


def create(url: str, content: bytes) -> bool:
    """Makes an object that is not there yet, of several processes by one alone; returns whether it was this one."""

    def put(fs: Any, path: str) -> None:
        _make_parent(fs, path)
        fs.pipe_file(path, content, mode="create")

    try:
        _on("writing", url, put)
    except FileExistsError:
        return False
    return True


def exists(url: str) -> bool:
    """Whether there is an object, or anything below it as a folder."""

    def ask(fs: Any, path: str) -> bool:
        fs.invalidate_cache()
        try:
            fs.info(path)
        except FileNotFoundError:
            return False
        return True

    return _on("looking for", url, ask)


def stored(url: str) -> dict[str, Stored]:
    """All objects below `url`, at any depth, by their names relative to it; none where there is no such folder."""

    def listed(fs: Any, path: str) -> dict[str, Stored]:
        fs.invalidate_cache()
        if hasattr(fs, "objects"):  # one request a thousand, at any depth
            found = fs.objects(path)
        else:
            try:
                found = [*fs.find(path, detail=True).values()]
            except FileNotFoundError:
                return {}
        root = path.rstrip("/") + "/"
        return {
            entry["name"].removeprefix(root): Stored(int(entry["size"] or 0), _version(entry))
            for entry in found
            if entry["name"].startswith(root)
        }

    return _on("listing", url, listed)


def version(url: str) -> str:
    """The version of one object, as `stored` tells it."""

    def ask(fs: Any, path: str) -> str:
        fs.invalidate_cache()
        return _version(fs.info(path))

    return _on("looking for", url, ask)


def delete(url: str) -> None:
    """Removes one object; nothing if there is none."""

    def remove(fs: Any, path: str) -> None:
        with suppress(FileNotFoundError):
            fs.rm_file(path)

    _on("deleting", url, remove)


def upload(file: Path, url: str) -> None:
    """Copies a local file, a large one in parts that are sent beside each other."""

    def put(fs: Any, path: str) -> None:
        _make_parent(fs, path)
        fs.put_file(str(file), path)

    _on("uploading", url, put)


def download(url: str, file: Path) -> None:
    """Copies an object to a local file, which is there when it is whole and on disk; its folder must exist."""
    beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        _on("downloading", url, lambda fs, path: fs.get_file(path, str(beside)))
        with beside.open("rb") as copied:
            os.fsync(copied.fileno())
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
    fsync_folder(file.parent)


def upload_folder(folder: Path, url: str, last: str) -> None:
    """Makes the folder `url` what the local folder holds, its file `last` after all others.

    So `last` marks a folder that is whole: readers look for it and take one without it for absent. If one of that name
    is there already, it goes first. What else lies below `url` goes too, and so do parts of uploads that were killed.
    """
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    clear_folder(url, last)
    for name in [*(name for name in names if name != last), last]:
        upload(folder / name, joined(url, name))


def clear_folder(url: str, first: str, keep: Iterable[str] = ()) -> None:
    """Removes what lies below `url` except the names in `keep`, the file `first` before all others, so that no half of
    it looks whole."""
    if first not in keep:
        delete(joined(url, first))
    for name in sorted(stored(url).keys() - {*keep}):
        delete(joined(url, name))
    abort_uploads(url)


def abort_uploads(url: str) -> None:
    """Drops the parts that killed uploads to `url`, or below it, left in a store that keeps and bills them (S3)."""
    fs, path = file_system(url)
    if hasattr(fs, "abort_uploads"):
        try:
            fs.abort_uploads(path)
        except TemporaryError:
            raise
        except UserError as error:  # few are given the permission to list them
            print(f"{error}; parts of killed uploads, if there are any, stay", file=sys.stderr, flush=True)


def _on(what: str, url: str, action: Callable[[Any, str], Result]) -> Result:
    fs, path = file_system(url)
    return persist(lambda: action(fs, path), f"{what} {url}", _lasting)


def _lasting(error: Exception) -> str | Exception | None:
    """Of file systems other than our own, each with errors of its own: what is known not to pass."""
    if isinstance(error, OSError) and (error.errno in NO_ROOM or error.errno == errno.EROFS):
        return f"no space left ({error.strerror}): free some"
    if isinstance(error, PermissionError):
        return f"no permission ({' '.join(str(error).split())[:200]}): use other credentials"
    if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError) and error.errno is not None:
        return error
    lasting = (FileNotFoundError, FileExistsError, NotImplementedError, ImportError, ValueError, TypeError)
    return error if isinstance(error, lasting) else None


def _make_parent(fs: Any, path: str) -> None:
    if "file" in fs.protocol or "memory" in fs.protocol:
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)


def _version(entry: dict[str, Any]) -> str:
    keys = ("ETag", "etag", "content_md5", "updated", "last_modified", "LastModified", "mtime", "created")
    return next((str(entry[key]) for key in keys if entry.get(key)), "")
