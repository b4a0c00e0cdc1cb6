"""How documents are stored in files: text, source code, JSON lines and parquet, and the base class of any other."""

import importlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, BinaryIO, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from lrtrain.runtime.errors import UserError

TEXT_DOCUMENT = 4 * 1024  # characters: a text file is cut at the first blank line after so many
CODE_DOCUMENT = 1024 * 1024  # characters: a source file is one document up to here
PARQUET_ROWS = 1024  # rows decoded at once
BUFFER_BYTES = 1024 * 1024


class DocumentFormat(ABC):
    """One way to store documents in a file. A subclass anywhere is named by its class path in `prepare.formats`.

    Attributes:
        suffixes: Of the names of such files, in small letters (`.csv`); `.gz` and `.zst` after one are undone by the
            reader, so that a format sees the bytes as they were before.
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
        reader adds the file's name.
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
        text = io.TextIOWrapper(file, encoding="utf-8-sig")
        while line := text.readline(self.at_least):
            lines.append(line)
            size += len(line)
            # A file without blank lines must not grow into one document of any size.
            if size >= self.at_least and (not line.strip() or size >= 2 * self.at_least):
                yield "".join(lines)
                lines, size = [], 0
        yield "".join(lines)


class Code(Text):
    """Source code and Markdown: a file is one document up to 1 MiB."""

    suffixes = (".md", ".rst", ".py")
    at_least = CODE_DOCUMENT


class JsonLines(DocumentFormat):
    """An object a line, with the text under the key `text_column`; nulls are left out."""

    suffixes = (".jsonl", ".ndjson", ".json")

    def texts(self, file: BinaryIO) -> Iterator[str | None]:
        for number, line in enumerate(file, 1):
            yield self._text(f"line {number}", line) if line.strip() else None

    def _text(self, where: str, line: bytes) -> str | None:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where} is not JSON ({error}): each line must be one object") from error
        if not isinstance(record, dict):
            raise UserError(f"{where} is not a JSON object: each line must be one object with a text column")
        if self.text_column not in record:
            raise _missing(where, self.text_column, record)
        text = record[self.text_column]
        if text is not None and not isinstance(text, str):
            raise _no_text(f"{where}: column", self.text_column, type(text).__name__)
        if text and b"\\ud" in line.lower():  # half a surrogate pair is JSON but has no UTF-8
            return text.encode("utf-8", "replace").decode("utf-8")
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
        if not _is_text(schema.field(column).type):
            raise _no_text("column", column, schema.field(column).type)
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            if rows > start:
                for batch in table.iter_batches(PARQUET_ROWS, row_groups=[group], columns=[column]):
                    yield from batch.column(0).to_pylist()[start:]
                    start = max(0, start - len(batch))
            else:
                start -= rows


BUILT_IN: tuple[type[DocumentFormat], ...] = (Text, Code, JsonLines, Parquet)


def formats_by_suffix(class_paths: Sequence[str] = ()) -> dict[str, type[DocumentFormat]]:
    """Suffix -> format: the built-in ones, and before them those of class paths such as `my_format.Csv`.

    Raises:
        UserError: a class path names no format.
    """
    kinds = [*BUILT_IN, *map(_imported, class_paths)]
    return {suffix: kind for kind in kinds for suffix in kind.suffixes}


def _imported(class_path: str) -> type[DocumentFormat]:
    module, _, name = class_path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"formats: {class_path} cannot be imported ({error}): give a class path such as my_format.Csv, of a file "
            "in this folder or beside the YAML"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, DocumentFormat) and hasattr(kind, "suffixes")):
        raise UserError(f"formats: {class_path} is no lrtrain.data.DocumentFormat with suffixes: derive it from that")
    return kind


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)


def _missing(where: str, column: str, present: Any) -> UserError:
    return UserError(f"{where} has no column {column!r}, it has {', '.join(present)}: name one as text_column")


def _no_text(where: str, column: str, kind: Any) -> UserError:
    return UserError(f"{where} {column!r} holds {kind}, not text: name another as text_column")
