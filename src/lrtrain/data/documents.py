"""The documents of a file as a stream that goes on where it stopped or broke."""

import io
import lzma
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import fsspec
import pyarrow as pa

from lrtrain.data.formats import BUFFER_BYTES
from lrtrain.data.listing import Part
from lrtrain.data.messages import shown, unreadable
from lrtrain.runtime.errors import TemporaryError, UserError
from lrtrain.runtime.stores import register_s3

RETRY_SECONDS = (1.0, 5.0, 25.0)  # pauses before a remote file is opened again


class Document(NamedTuple):
    """A text and where reading goes on after it.

    `position` counts what the format gives: rows of a parquet file, lines of a JSON-lines file, pieces of a text;
    `offset` is how many bytes of the stored file have been read, for a progress bar.
    """

    text: str
    position: int
    offset: int


def read_documents(part: Part, text_column: str = "text", start: int = 0) -> Iterator[Document]:
    """Gives the documents of `part` after position `start`, those of white space left out.

    Half a surrogate pair, which has no UTF-8, becomes a question mark. A remote file that fails in mid-stream is opened
    again at the position reached, three times. Raises UserError, with file and place, for whatever else cannot be read.
    """
    remote = "://" in part.url
    failures = 0
    while True:
        try:
            for document in _read(part, text_column, start):
                start, failures = document.position, 0
                yield document
            return
        except TemporaryError:
            raise
        except UserError as error:
            raise UserError(shown(f"{part.url}: {error}")) from error
        except Exception as error:  # whatever a format, its library or a file system meets in the file
            lasting = isinstance(error, (PermissionError, ImportError, ValueError))
            if not remote or lasting or failures == len(RETRY_SECONDS):
                raise unreadable(part.url, error, start) from error
        time.sleep(RETRY_SECONDS[failures])
        failures += 1


def _read(part: Part, text_column: str, start: int) -> Iterator[Document]:
    if part.format.seeks and part.compression:
        raise UserError(f"is compressed, and {part.format.__name__} seeks in its files: decompress it")
    with ExitStack() as opened:
        raw: BinaryIO
        if "://" in part.url:
            register_s3()
            raw = opened.enter_context(fsspec.open(part.url, "rb"))
        else:  # a local name may hold what a URL gives a meaning
            raw = opened.enter_context(Path(part.url).open("rb"))
        stream = raw
        if not part.format.seeks:
            stream = io.BufferedReader(cast(Any, _decompressed(raw, part.compression, opened)), BUFFER_BYTES)
        for position, text in enumerate(part.format(text_column).texts_after(stream, start), start + 1):
            if text is not None and not isinstance(text, str):
                raise UserError(f"{part.format.__name__} gives {type(text).__name__} for document {position}, not text")
            if text and text.strip():
                yield Document(_encodable(text), position, raw.tell())


def _decompressed(raw: BinaryIO, compression: str | None, opened: ExitStack) -> Any:
    if compression == "xz":
        return lzma.open(raw)
    return opened.enter_context(pa.input_stream(raw, compression, BUFFER_BYTES))


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text
