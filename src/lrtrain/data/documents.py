"""Documents of a part, read as a stream: parquet by batches of rows, JSON lines by line, text by blank lines."""

import io
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from lrtrain.data.sources import Part, unreadable
from lrtrain.runtime.errors import UserError

TEXT_DOCUMENT = 4 * 1024  # characters: a text file is cut at the first blank line after so many
CODE_DOCUMENT = 1024 * 1024  # characters: a source file is one document up to here
PARQUET_ROWS = 1024  # rows decoded at once
BUFFER_BYTES = 1024 * 1024
RETRY_SECONDS = (1.0, 5.0, 25.0)  # pauses before a remote file is opened again


class Document(NamedTuple):
    """A text and where reading goes on after it.

    `position` counts rows of a parquet file, lines of a JSON-lines file, documents of a text file; `offset` is how
    many bytes of the stored file have been read, for a progress bar.
    """

    text: str
    position: int
    offset: int


def read_documents(part: Part, text_column: str = "text", start: int = 0) -> Iterator[Document]:
    """The documents of `part` after position `start`, those of white space left out.

    What a document is: a row of a parquet file, a line of a JSON-lines file (the string in `text_column`; nulls are
    left out); a whole file of source code or Markdown up to 1 MiB; a text file is cut at the first blank line after
    4 KiB, so that a small one is one document and a large one is many.

    A remote file that fails in mid-stream is opened again at the position reached, three times. Raises UserError for a
    file that cannot be read, is not what its suffix says, or lacks the column.
    """
    reader = {"parquet": _read_parquet, "jsonl": _read_jsonl}.get(part.format, _read_text)
    failures = 0
    while True:
        try:
            for document in reader(part, text_column, start):
                start, failures = document.position, 0
                yield document
            return
        except UserError:
            raise
        except Exception as error:
            if not part.remote and not isinstance(error, (OSError, ValueError, pa.ArrowException)):
                raise
            lasting = isinstance(error, (PermissionError, ImportError, ValueError))
            if not part.remote or lasting or failures == len(RETRY_SECONDS):
                raise unreadable(part.url, error) from error
        time.sleep(RETRY_SECONDS[failures])
        failures += 1


@contextmanager
def _open(part: Part) -> Iterator[tuple[Any, io.BufferedReader]]:
    """The stored file and the stream of its bytes, decompressed; a truncated compressed file raises OSError."""
    with fsspec.open(part.url, "rb") as raw, pa.input_stream(raw, part.compression, BUFFER_BYTES) as stream:
        yield raw, io.BufferedReader(stream, BUFFER_BYTES)


def _read_text(part: Part, _: str, start: int) -> Iterator[Document]:
    at_least = CODE_DOCUMENT if part.format == "code" else TEXT_DOCUMENT
    lines: list[str] = []
    size = position = 0
    with _open(part) as (raw, stream):
        file = io.TextIOWrapper(stream, encoding="utf-8-sig")
        while True:
            line = file.readline(at_least)
            lines.append(line)
            size += len(line)
            # A file without blank lines must not grow into one document of any size.
            if not line or (size >= at_least and (not line.strip() or size >= 2 * at_least)):
                text = "".join(lines)
                lines, size = [], 0
                if text.strip():
                    position += 1
                    if position > start:
                        yield Document(text, position, raw.tell())
            if not line:
                return


def _read_jsonl(part: Part, column: str, start: int) -> Iterator[Document]:
    with _open(part) as (raw, stream):
        for number, line in enumerate(stream, 1):
            if number <= start or not line.strip():
                continue
            where = f"{part.url} line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UserError(f"{where} is not JSON ({error}): each line must be one object") from error
            if not isinstance(record, dict):
                raise UserError(f"{where} is not a JSON object: each line must be one object with a text column")
            if column not in record:
                raise _missing(where, column, record)
            text = record[column]
            if text is not None and not isinstance(text, str):
                kind = type(text).__name__
                raise UserError(f"{where}: column {column!r} holds {kind}, not text: name another as text_column")
            if text and text.strip():
                if b"\\ud" in line.lower():  # half a surrogate pair is JSON but has no UTF-8
                    text = text.encode("utf-8", "replace").decode("utf-8")
                yield Document(text, number, raw.tell())


def _read_parquet(part: Part, column: str, start: int) -> Iterator[Document]:
    with fsspec.open(part.url, "rb") as raw:
        file = pq.ParquetFile(raw, buffer_size=BUFFER_BYTES)
        if column not in file.schema_arrow.names:
            raise _missing(part.url, column, file.schema_arrow.names)
        if not _is_text(file.schema_arrow.field(column).type):
            kind = file.schema_arrow.field(column).type
            raise UserError(f"{part.url}: column {column!r} holds {kind}, not text: name another as text_column")
        row = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row + rows <= start:
                row += rows
                continue
            for batch in file.iter_batches(PARQUET_ROWS, row_groups=[group], columns=[column]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    if row > start and text and text.strip():
                        yield Document(text, row, part.size * row // file.metadata.num_rows)


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)


def _missing(where: str, column: str, present: Any) -> UserError:
    return UserError(f"{where} has no column {column!r}, it has {', '.join(present)}: name one as text_column")
