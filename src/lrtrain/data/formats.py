"""How documents are stored in files: text, source code, JSON lines and parquet, and the base class of any other."""

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, BinaryIO, ClassVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from lrtrain.data.beginnings import BEGINNING, not_text, not_utf8
from lrtrain.runtime.errors import UserError

TEXT_DOCUMENT = 4 * 1024  # characters: a text file is cut at the first blank line after so many
CODE_DOCUMENT = 1024 * 1024  # characters: a source file is one document up to here
PARQUET_ROWS = 1024  # rows decoded at once
BUFFER_BYTES = 1024 * 1024
COLUMNS = 20  # names of columns in a message, at most


class DocumentFormat(ABC):
    """One way to store documents in a file. A subclass anywhere is named by its class path in `prepare.formats`.

    Attributes:
        suffixes: Of the names of such files, in small letters (`.csv`); `.gz`, `.zst`, `.bz2` and `.xz` after one are
            undone by the reader, so that a format sees the bytes as they were before.
        seeks: Whether reading needs `seek`, as an archive's table at its end does; such a file cannot be compressed.
        text_column: The request's `text_column`, for formats whose records have named parts.
    """

    suffixes: ClassVar[tuple[str, ...]]
    seeks: ClassVar[bool] = False

    def __init__(self, text_column: str = "text") -> None:
        self.text_column = text_column

    @abstractmethod
    def texts(self, file: BinaryIO) -> Iterator[str | None]:
        """Each document's text in the file's order; None, or white space, for a record that is to be left out.

        The same file gives the same texts in every process: an interrupted preparation goes on by counting them. What
        is wrong with the file is a UserError whose line begins with the place (`line 3 has no …`), to which the
        reader adds the file's name; of any other exception it makes a line with the number of the document before.
        """

    def texts_after(self, file: BinaryIO, start: int) -> Iterator[str | None]:
        """`texts` without the first `start`; a format that can skip them without reading them overrides this."""
        return islice(self.texts(file), start, None)


class Text(DocumentFormat):
    """UTF-8 prose, cut at the first blank line after 4 KiB: a small file is one document and a large one is many."""

    suffixes: ClassVar[tuple[str, ...]] = (".txt",)
    at_least = TEXT_DOCUMENT

    def texts(self, file: BinaryIO) -> Iterator[str]:
        lines: list[str] = []
        size = 0
        for line in utf8_lines(file, self.at_least):
            lines.append(line)
            size += len(line)
            # A file without blank lines must not grow into one document of any size.
            if size >= self.at_least and (not line.strip() or size >= 2 * self.at_least):
                yield "".join(lines)
                lines, size = [], 0
        yield "".join(lines)


def utf8_lines(file: BinaryIO, longest: int) -> Iterator[str]:
    """The lines of a text, one longer than `longest` characters in pieces.

    Raises UserError with the line's number for what is not UTF-8.
    """
    beginning = io.BufferedReader(cast(Any, file), max(BEGINNING, io.DEFAULT_BUFFER_SIZE))
    head = beginning.peek(BEGINNING)[:BEGINNING]
    if said := not_text(head):
        raise UserError(said)
    number = 0
    text = io.TextIOWrapper(beginning, encoding="utf-8-sig")
    try:
        while line := text.readline(longest):
            number += line.endswith("\n")
            yield line
    except UnicodeDecodeError as error:
        number += 1 + error.object.count(b"\n", 0, error.start)
        raise UserError(f"line {number} {not_utf8(head)}") from error
    finally:
        with suppress(ValueError):  # the file may be closed by now; else it stays open, for whoever opened it
            text.detach().detach()


class Code(Text):
    """Source code and Markdown: a file is one document up to 1 MiB."""

    suffixes = (".md", ".rst", ".py")
    at_least = CODE_DOCUMENT


class Unknown(Text):
    """A file that is named although its suffix says nothing: prose, unless it begins with a line of JSON."""

    suffixes = ()

    def texts(self, file: BinaryIO) -> Iterator[str]:
        for number, text in enumerate(super().texts(file)):
            if number == 0 and text.startswith("{") and _is_object(text.splitlines()[0]):
                raise UserError("begins with a JSON object: end its name in .jsonl, or in .txt to read it as prose")
            yield text


class JsonLines(DocumentFormat):
    """An object a line, with the text under the key `text_column`; nulls are left out."""

    suffixes = (".jsonl", ".jsonlines", ".ndjson", ".json")

    def texts(self, file: BinaryIO) -> Iterator[str | None]:
        for number, line in enumerate(file, 1):
            yield self._text(f"line {number}", line) if line.strip() else None

    def _text(self, where: str, line: bytes) -> str | None:
        try:
            # Python's own decoding of bytes lets half a surrogate pair pass, which no tokenizer takes.
            record = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise UserError(f"{where} {not_utf8(line[:BEGINNING])}") from error
        except (ValueError, RecursionError) as error:
            said = not_text(line[:BEGINNING]) or f"is not JSON ({error}): each line must be one object"
            raise UserError(f"{where} {said}") from error
        if not isinstance(record, dict):
            raise UserError(f"{where} is not a JSON object: each line must be one object with a text column")
        if self.text_column not in record:
            raise _missing(where, self.text_column, record)
        text = record[self.text_column]
        if text is not None and not isinstance(text, str):
            raise _no_text(f"{where}: column", self.text_column, type(text).__name__)
        return text


class Parquet(DocumentFormat):
    """A row a document, with the text in the column `text_column`; nulls are left out."""

    suffixes = (".parquet",)
    seeks = True

    def texts(self, file: BinaryIO) -> Iterator[str | None]:
        return self.texts_after(file, 0)

    def texts_after(self, file: BinaryIO, start: int) -> Iterator[str | None]:
        table, column = pq.ParquetFile(file, buffer_size=BUFFER_BYTES), self.text_column
        schema = table.schema_arrow
        if column not in schema.names:
            raise _missing("the table", column, schema.names)
        if schema.names.count(column) > 1:
            raise UserError(f"the table has {schema.names.count(column)} columns {column!r}: rename one")
        kind = schema.field(column).type
        if not _is_text(kind):
            raise _no_text("column", column, kind)
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            if rows > start:
                for batch in table.iter_batches(PARQUET_ROWS, row_groups=[group], columns=[column]):
                    # One by one: a row that is no UTF-8 fails at its own position. By name: `a` also selects `a.b`.
                    yield from (value.as_py() for value in batch.column(column)[start:])
                    start = max(0, start - len(batch))
            else:
                start -= rows


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(is_kind(value) for is_kind in kinds)


def _missing(where: str, column: str, present: Any) -> UserError:
    names = ", ".join([*map(str, present)][:COLUMNS]) + (", …" if len(present) > COLUMNS else "")
    return UserError(f"{where} has no column {column!r}, it has {names or 'none'}: name one as text_column")


def _no_text(where: str, column: str, kind: Any) -> UserError:
    return UserError(f"{where} {column!r} holds {kind}, not text: name another as text_column")
