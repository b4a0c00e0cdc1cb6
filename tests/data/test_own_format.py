"""A document format of the user's own: found by its class path, read, resumed, and refused in one line."""

import gzip
from pathlib import Path

import pytest

import sources
from lrtrain.data.documents import read_documents
from lrtrain.data.listing import list_sources
from lrtrain.data.manifest import Manifest
from lrtrain.data.preparation import PrepareSpec, prepare
from lrtrain.runtime.errors import UserError

CODE = """
import csv, io
from lrtrain.data import DocumentFormat

class Csv(DocumentFormat):
    suffixes = (".csv",)

    def texts(self, file):
        for row in csv.DictReader(io.TextIOWrapper(file, "utf-8", newline="")):
            yield row[self.text_column] or None

class Numbers(DocumentFormat):
    suffixes = (".csv",)

    def texts(self, file):
        yield 7

class Failing(DocumentFormat):
    suffixes = (".csv",)

    def texts(self, file):
        yield "half a pair \\ud83d"
        yield {}["title"]

class NoFormat:
    suffixes = (".csv",)

class Seeking(Csv):
    seeks = True
"""


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CSV file of 400 documents and an empty field, and a module `csv_format` that reads it."""
    (tmp_path / "csv_format.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "table.csv"
    file.write_text("number,body\n-1,\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate(sources.TEXTS)))
    return file


@pytest.mark.parametrize("compressed", [False, True])
def test_it_reads_its_files_and_goes_on_after_any_document(table: Path, compressed: bool) -> None:
    if compressed:
        table.with_suffix(".csv.gz").write_bytes(gzip.compress(table.read_bytes()))
        table.unlink()
    (part,) = list_sources([f"{table}*"], ["csv_format.Csv"]).parts
    everything = list(read_documents(part, "body"))
    assert [document.text for document in everything] == sources.TEXTS
    for i in (0, 1, 200, 399):
        rest = [document.text for document in read_documents(part, "body", everything[i].position)]
        assert rest == sources.TEXTS[i + 1 :]


def test_a_data_set_is_prepared_with_it_and_remembers_it(table: Path, tmp_path: Path) -> None:
    spec = PrepareSpec(source=[str(table)], text_column="body", train_vocab_size=300, formats=["csv_format.Csv"])
    manifest = prepare(spec, str(tmp_path / "out"))
    assert manifest.train.documents + manifest.val.documents == 400
    assert Manifest.load(str(tmp_path / "out")).formats == ["csv_format.Csv"]
    spec.formats = []
    with pytest.raises(UserError, match="formats is"):
        prepare(spec, str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("csv_format.Numbers", "table.csv: Numbers gives int for document 1, not text"),
        ("csv_format.Failing", "cannot read .*table.csv after document 1: 'title' .KeyError."),
        ("csv_format.NoFormat", "derive it"),
        ("csv_format.Cvs", "has no attribute 'Cvs'"),
        ("no_such_format.Csv", "No module named 'no_such_format'"),
        ("Csv", "class path such as"),
    ],
)
def test_what_is_wrong_with_it_is_one_line(table: Path, path: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        [document for part in list_sources([str(table)], [path]).parts for document in read_documents(part, "body")]
    assert "\n" not in str(raised.value)


def test_a_compressed_file_of_a_format_that_seeks_is_refused(table: Path) -> None:
    table.with_suffix(".csv.gz").write_bytes(gzip.compress(table.read_bytes()))
    (part,) = list_sources([f"{table}.gz"], ["csv_format.Seeking"]).parts
    with pytest.raises(UserError, match=r"csv.gz: is compressed, and Seeking seeks"):
        list(read_documents(part, "body"))
