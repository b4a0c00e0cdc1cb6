"""What files a source names, and their documents as a stream that goes on where it stopped or broke."""

import io
import sysconfig
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import fsspec
import pyarrow as pa
from fsspec.core import url_to_fs

from lrtrain.data.formats import BUFFER_BYTES, Code, DocumentFormat, Text, formats_by_suffix
from lrtrain.runtime.errors import UserError

RETRY_SECONDS = (1.0, 5.0, 25.0)  # pauses before a remote file is opened again
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
# Not prose and not code that one would learn from: test suites hold files with broken encodings on purpose.
STDLIB_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages"}


@dataclass(frozen=True)
class Part:
    """One file of a source: `compression` is None, `gzip` or `zstd`; `size` in bytes, 0 where nobody tells it."""

    url: str
    format: type[DocumentFormat]
    compression: str | None
    size: int


class Document(NamedTuple):
    """A text and where reading goes on after it.

    `position` counts what the format gives: rows of a parquet file, lines of a JSON-lines file, pieces of a text;
    `offset` is how many bytes of the stored file have been read, for a progress bar.
    """

    text: str
    position: int
    offset: int


def list_parts(source: Iterable[str], formats: Iterable[str] = ()) -> list[Part]:
    """Lists the files of `source` in a fixed order: as given, sorted by path within a folder or a glob, each once.

    Each entry is `stdlib` (the text of the running Python's standard library), a file, a folder (its files of a known
    format, at any depth, none that is hidden), a glob, or any fsspec URL of these. A named file of an unknown suffix
    is read as text. `formats` are class paths of further formats. Raises UserError for an entry that names nothing or
    cannot be listed.
    """
    known = formats_by_suffix([*formats])
    parts: dict[str, Part] = {}
    for entry in source:
        for part in _stdlib() if entry == "stdlib" else _expand(entry, known):
            parts.setdefault(part.url, part)
    return list(parts.values())


def read_documents(part: Part, text_column: str = "text", start: int = 0) -> Iterator[Document]:
    """Gives the documents of `part` after position `start`, those of white space left out.

    A remote file that fails in mid-stream is opened again at the position reached, three times. Raises UserError for a
    file that cannot be read, is not what its suffix says, or lacks the column.
    """
    remote = "://" in part.url
    failures = 0
    while True:
        try:
            for document in _read(part, text_column, start):
                start, failures = document.position, 0
                yield document
            return
        except UserError as error:
            raise UserError(f"{part.url}: {error}") from error
        except Exception as error:
            if not remote and not isinstance(error, (OSError, ValueError, pa.ArrowException)):
                raise
            lasting = isinstance(error, (PermissionError, ImportError, ValueError))
            if not remote or lasting or failures == len(RETRY_SECONDS):
                raise _unreadable(part.url, error) from error
        time.sleep(RETRY_SECONDS[failures])
        failures += 1


def _read(part: Part, text_column: str, start: int) -> Iterator[Document]:
    if part.format.seeks and part.compression:
        raise UserError(f"is compressed, and {part.format.__name__} seeks in its files: decompress it")
    with fsspec.open(part.url, "rb") as raw, ExitStack() as opened:
        stream = raw
        if not part.format.seeks:
            decompressed = opened.enter_context(pa.input_stream(raw, part.compression, BUFFER_BYTES))
            stream = io.BufferedReader(decompressed, BUFFER_BYTES)
        for position, text in enumerate(part.format(text_column).texts_after(stream, start), start + 1):
            if text is not None and not isinstance(text, str):
                raise UserError(f"{part.format.__name__} gives {type(text).__name__} for document {position}, not text")
            if text and text.strip():
                yield Document(text, position, raw.tell())


def _unreadable(url: str, error: Exception) -> UserError:
    """The line for an error met while reading `url`."""
    reason = " ".join(str(error).split())[:300]
    if isinstance(error, ImportError):
        return UserError(f"{url} needs a package that is not installed ({reason}): pip install 'lrtrain[hf,s3]'")
    if isinstance(error, UnicodeDecodeError):
        return UserError(f"{url} is not UTF-8 text: convert it (iconv -f LATIN1 -t UTF-8) or leave it out of source")
    if isinstance(error, FileNotFoundError):
        return UserError(f"{url} does not exist: correct source")
    advice = "check the network and the URL" if "://" in url else "check the file"
    return UserError(f"cannot read {url}: {reason} ({type(error).__name__}); {advice}")


def _stdlib() -> list[Part]:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [f for f in root.rglob("*.py") if STDLIB_LEFT_OUT.isdisjoint(f.relative_to(root).parts[:-1])]
    if not files:
        raise UserError(f"source stdlib: no .py files under {root}: give a path to text instead")
    return [Part(str(f), Code, None, f.stat().st_size) for f in sorted(files)]


def _expand(entry: str, known: Mapping[str, type[DocumentFormat]]) -> list[Part]:
    try:
        fs, path = url_to_fs(entry)
        is_folder = fs.isdir(path)
        if is_folder:
            below = fs.find(path, detail=True).items()
            found = {p: i for p, i in below if _suffix(p) in known and "/." not in p.removeprefix(path)}
        elif fs.exists(path):
            found = {path: fs.info(path)}
        else:
            found = {p: i for p, i in fs.glob(path, detail=True).items() if i["type"] == "file"}
    except Exception as error:  # each file system has errors of its own
        raise _unreadable(entry, error) from error
    if is_folder and not found:
        raise UserError(f"source {entry}: the folder holds no {' '.join(known)} file (or .gz, .zst of these)")
    if not found:
        raise UserError(f"source {entry} matches no file: correct the path or the glob")
    local = "file" in fs.protocol
    return [
        Part(
            path if local else fs.unstrip_protocol(path),
            known.get(_suffix(path), Text),
            COMPRESSIONS.get(Path(path).suffix.lower()),
            int(info.get("size") or 0),
        )
        for path, info in sorted(found.items())
    ]


def _suffix(path: str) -> str:
    """What a name ends in before a compression's suffix."""
    name = Path(path.lower())
    return Path(name.stem).suffix if name.suffix in COMPRESSIONS else name.suffix
