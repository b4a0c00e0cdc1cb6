"""A format of documents: what `lrtrain prepare` reads beside text, source code, JSON lines and parquet."""

import csv
import io
from collections.abc import Iterator
from typing import BinaryIO

from lrtrain.data import DocumentFormat


class MyFormat(DocumentFormat):
    """A row a document, the text in the column `text_column`; rows without one are left out."""

    suffixes = (".csv",)

    def texts(self, file: BinaryIO) -> Iterator[str | None]:
        for row in csv.DictReader(io.TextIOWrapper(file, "utf-8", newline="")):
            yield row[self.text_column]
