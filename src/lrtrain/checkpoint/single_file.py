"""Checkpoint files that are either whole or recognizably not: no Lightning, only a file format.

The file is what `torch.save` writes (a zip archive, so `torch.load` reads it anywhere) and carries the sha256 of
that in its archive comment. The checksum is inside the file, so that one rename publishes both and no copy parts them.
A zip's own CRC32s would not do: they skip the padding, and torch does not look at them.
"""

import hashlib
import io
import os
import re
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import NO_ROOM, replacing
from lrtrain.runtime.liveness import beat

PARTIAL = ".partial"
_COMMENT = re.compile(rb"\x47\x00sha256:([0-9a-f]{64})")  # the comment's length, 71, as the zip's last field, and it
_COMMENT_BYTES = 73
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


def fault(path: Path) -> str | None:
    """Why `path` is not a whole checkpoint, in a few words, or None if it is; reads the file once."""
    try:
        with path.open("rb") as file:
            return _file_fault(file, path.stat().st_size)
    except FileNotFoundError:
        return "there is no such file"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"


def digest(path: Path) -> str:
    """The sha256 in a whole file: of what `torch.save` wrote, without the comment that holds it."""
    with path.open("rb") as file:
        file.seek(-64, os.SEEK_END)
        return file.read().decode()


def read_whole(
    path: Path,
    map_location: Any = "cpu",
    weights_only: bool = True,
    mapped: bool = False,
    checked: bool = False,
) -> dict[str, Any]:
    """The checkpoint in `path`, after its checksum was compared.

    `weights_only` lets nothing but tensors, numbers, strings and containers of them in: a file cannot run code here.
    `mapped` leaves the tensors in the file, from where each page comes when it is asked for. `checked` says that the
    checksum was compared a moment ago.

    Raises:
        UserError: the file is missing, cut short, changed since it was written, or not a checkpoint of lrtrain.
    """
    if not checked and (why := fault(path)):
        raise UserError(f"cannot use checkpoint {path}: {why}; pass another one, or 'last' for the newest whole one")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=weights_only, mmap=mapped)
    except Exception as error:  # torch raises many kinds; the bytes are as written, so the content is foreign
        raise UserError(f"cannot use checkpoint {path}: {str(error).splitlines()[0]}") from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"cannot use checkpoint {path}: it holds a {type(checkpoint).__name__}, not a training state")
    return checkpoint


def write_whole(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Writes beside `path`, fsyncs, renames, fsyncs the folder: at any moment `path` is the old file or the new one.

    Raises:
        UserError: the disk is full or refuses; the partial file is gone by then.
        TypeError: something in `checkpoint` is not plain, so that `read_whole` could not read it back.
    """
    check_plain(checkpoint)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, path.with_name(path.name + PARTIAL)) as file:
            sink = _Sink(file)
            torch.save(checkpoint, cast(IO[bytes], sink))
            file.seek(-2, os.SEEK_END)  # the archive ends in the length of its comment, 0 until now
            comment = b"sha256:" + sink.digest.hexdigest().encode()
            file.write(len(comment).to_bytes(2, "little") + comment)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch fails once more on the way out
        if isinstance(cause, OSError):
            raise UserError(_refusal(cause, checkpoint, path)) from cause
        raise


def check_plain(checkpoint: Mapping[str, Any]) -> None:
    """Raises TypeError where something is not plain, so that `read_whole` could not read it back."""
    if where := _foreign(checkpoint, "checkpoint"):
        raise TypeError(f"{where}: only tensors, numbers, strings and built-in containers of them can be read back")


class _Sink(io.RawIOBase):
    """A file for `torch.save` that hashes and counts on the way; without a `file` beneath it keeps nothing."""

    def __init__(self, file: BinaryIO | None = None) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.count = 0

    def write(self, chunk: bytes) -> int:  # type: ignore[override]
        if self.file is not None:
            self.file.write(chunk)
            beat()
            self.digest.update(chunk)
        self.count += len(chunk)
        return len(chunk)


def _file_fault(file: BinaryIO, size: int) -> str | None:
    if size == 0:
        return "it is empty"
    if not file.read(4).startswith(b"PK\x03\x04"):
        return "it is not a checkpoint"
    file.seek(max(0, size - _COMMENT_BYTES))
    comment = _COMMENT.fullmatch(file.read())
    if comment is None:
        complete = zipfile.is_zipfile(file)
        return "it has no checksum, so lrtrain did not write it" if complete else f"it is cut short at {size} bytes"
    file.seek(0)
    digest, left = hashlib.sha256(), size - _COMMENT_BYTES
    while left and (chunk := file.read(min(left, 1 << 20))):
        digest.update(chunk)
        left -= len(chunk)
    digest.update(b"\0\0")  # the comment's length as torch wrote it
    return None if digest.hexdigest().encode() == comment[1] else "its bytes do not match its checksum"


def _foreign(value: Any, where: str) -> str | None:
    """Names the first thing that `torch.load(weights_only=True)` would refuse, None if there is none."""
    if isinstance(value, torch.Tensor) or type(value) in _PLAIN:
        return None
    if type(value) in (dict, OrderedDict):
        pairs = ((key, f"{where}[{key!r}]", item) for key, item in value.items())
        return next((w for key, at, item in pairs if (w := _foreign(key, f"{at}'s key") or _foreign(item, at))), None)
    if type(value) in (list, tuple, set, torch.Size):
        return next((w for i, item in enumerate(value) if (w := _foreign(item, f"{where}[{i}]"))), None)
    return f"{where} is a {type(value).__module__}.{type(value).__qualname__}"


def _refusal(cause: OSError, checkpoint: Mapping[str, Any], path: Path) -> str:
    reason = f"cannot write checkpoint {path}: {cause.strerror or cause}"
    if cause.errno not in NO_ROOM:
        return f"{reason}; set trainer.default_root_dir to a folder that can be written"
    counter = _Sink()
    torch.save(checkpoint, cast(IO[bytes], counter))
    free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
    room = f"it needs {counter.count / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free there"
    return f"{reason} ({room}); make room, lower checkpoints.keep or set trainer.default_root_dir to another disk"
