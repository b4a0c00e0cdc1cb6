"""Dictionaries of dictd (`.dict`, and `.dict.dz`, which is gzip) as documents: an entry each."""

from collections.abc import Iterator
from typing import BinaryIO, ClassVar

from lrtrain.data.beginnings import BEGINNING, not_text
from lrtrain.data.formats import CODE_DOCUMENT, DocumentFormat
from lrtrain.runtime.errors import UserError

OF_DICTD = ("00-database", "00database")
"""How the entries begin that are about the dictionary."""


class Dictionary(DocumentFormat):
    """An entry a document; it begins at a line without indentation, after a blank or an indented one.

    So dictd's tools write them, the index beside the file only says where. Entries about the dictionary are left out.
    A line that is not UTF-8 is read as Windows-1252: GCIDE, which is UTF-8, has such lines.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".dict",)

    def texts(self, file: BinaryIO) -> Iterator[str | None]:
        lines: list[str] = []
        size = 0
        for line in _lines(file):
            begins = not line[0].isspace() and (not lines or lines[-1][0].isspace())
            if lines and (begins or size >= CODE_DOCUMENT):
                yield _entry(lines)
                lines, size = [], 0
            lines.append(line)
            size += len(line)
        yield _entry(lines)


def _lines(file: BinaryIO) -> Iterator[str]:
    """Lines, one longer than a document may be in pieces. Raises UserError for a file that is no text."""
    first = True
    while line := file.readline(CODE_DOCUMENT):
        if first and (said := not_text(line[:BEGINNING])):
            raise UserError(said)
        first = False
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError:
            yield line.decode("cp1252", "replace")


def _entry(lines: list[str]) -> str | None:
    return None if lines and lines[0].startswith(OF_DICTD) else "".join(lines)
