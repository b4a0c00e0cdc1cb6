"""Documents of a part, read as a stream that goes on where it stopped, and is taken up again where it breaks."""

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa

from lrtrain.data.formats import BUFFER_BYTES
from lrtrain.data.sources import Part, unreadable
from lrtrain.runtime.errors import UserError

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
    """The documents of `part` after position `start`, those of white space left out; its format says what one is.

    A remote file that fails in mid-stream is opened again at the position reached, three times. Raises UserError for a
    file that cannot be read, is not what its suffix says, or lacks the column.
    """
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
            if not part.remote and not isinstance(error, (OSError, ValueError, pa.ArrowException)):
                raise
            lasting = isinstance(error, (PermissionError, ImportError, ValueError))
            if not part.remote or lasting or failures == len(RETRY_SECONDS):
                raise unreadable(part.url, error) from error
        time.sleep(RETRY_SECONDS[failures])
        failures += 1


def _read(part: Part, text_column: str, start: int) -> Iterator[Document]:
    with _open(part) as (raw, stream):
        for position, text in enumerate(part.format(text_column).texts_after(stream, start), start + 1):
            if text is not None and not isinstance(text, str):
                raise UserError(f"{part.format.__name__} gives {type(text).__name__} for document {position}, not text")
            if text and text.strip():
                yield Document(text, position, raw.tell())


@contextmanager
def _open(part: Part) -> Iterator[tuple[Any, Any]]:
    """The stored file and the stream of its bytes, decompressed; a truncated compressed file raises OSError."""
    if part.format.seeks and part.compression:
        raise UserError(f"is compressed, and {part.format.__name__} seeks in its files: decompress it")
    with fsspec.open(part.url, "rb") as raw:
        if part.format.seeks:
            yield raw, raw
            return
        with pa.input_stream(raw, part.compression, BUFFER_BYTES) as stream:
            yield raw, io.BufferedReader(stream, BUFFER_BYTES)
