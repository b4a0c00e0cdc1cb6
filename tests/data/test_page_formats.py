"""Web pages and dictionaries as documents, and what is said of those that are none."""

import gzip
from pathlib import Path

import pytest

from lrtrain.data.documents import read_documents
from lrtrain.data.listing import list_sources
from lrtrain.runtime.errors import UserError

PAGE = """<!DOCTYPE html>
<html><head><title>A page</title><style>p { color: red }</style><script>if (a < b) { go() }</script></head>
<body><!-- no text --><h1>Of  ranks</h1>
<p>The <em>rank</em> of&nbsp;a
matrix &amp; its norm&mdash;both.<br>Next line</p>
<ul><li>one</li><li>two <a href="x">link</a></li></ul>
<pre>
for i in x:
    print(i)
</pre><noscript>Switch it on</noscript></body></html>
"""
TEXT = """A page

Of ranks

The rank of a matrix & its norm—both.
Next line

one
two link

for i in x:
    print(i)
"""
DICTIONARY = """

00-database-info
   This file was converted.

rank \\Rank\\, a. [AS. ranc strong.]
   1. Luxuriant in growth.
   [1913 Webster]

         Rank corn.                        --Shak.
   [1913 Webster]

rank correlation \\rank\\ n.
   A measure.
norm \\norm\\ n.
   A rule.
"""


def texts(file: Path, start: int = 0) -> list[str]:
    return [d.text for part in list_sources([str(file)]).parts for d in read_documents(part, start=start)]


@pytest.mark.parametrize("name", ["page.html", "page.htm", "page.xhtml.gz"])
def test_a_page_is_one_document_of_what_a_browser_shows(tmp_path: Path, name: str) -> None:
    content = PAGE.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    (text,) = texts(tmp_path / name)
    assert [line.strip() for line in text.splitlines()] == [line.strip() for line in TEXT.splitlines()]
    assert "    print(i)" in text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("<meta charset=iso-8859-1><p>größer".encode("latin-1"), "größer\n"),
        ("<?xml version='1.0' encoding='ISO-8859-1'?><p>größer</p>".encode("latin-1"), "größer\n"),
        ("\ufeff<p>größer".encode(), "größer\n"),
        (b"<p>an <b>unclosed<table><tr><td>one<td>two<tr><td>three", "an unclosed\n\none two\nthree\n"),
        (b"plain text < of 3 > 2 lines", "plain text < of 3 > 2 lines\n"),
    ],
)
def test_pages_of_other_encodings_and_broken_ones_give_their_text(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "x.html").write_bytes(content)
    assert texts(tmp_path / "x.html") == [text]


def test_an_entry_of_a_dictionary_is_a_document_and_what_is_about_the_dictionary_none(tmp_path: Path) -> None:
    (tmp_path / "words.dict.dz").write_bytes(gzip.compress(DICTIONARY.encode()))
    found = texts(tmp_path / "words.dict.dz")
    assert [text.partition("\n")[0] for text in found] == [
        "rank \\Rank\\, a. [AS. ranc strong.]",
        "rank correlation \\rank\\ n.",
        "norm \\norm\\ n.",
    ]
    assert "--Shak." in found[0]
    assert "".join(found) == DICTIONARY.partition("converted.\n\n")[2]
    (part,) = list_sources([str(tmp_path)]).parts
    documents = [*read_documents(part)]
    for number, document in enumerate(documents):
        assert [d.text for d in read_documents(part, start=document.position)] == found[number + 1 :]


def test_a_line_of_a_dictionary_that_is_not_utf8_is_read_as_windows_1252(tmp_path: Path) -> None:
    content = "rank\n   größer\n".encode() + b"   Webster\x92s\nnorm\n"
    (tmp_path / "words.dict").write_bytes(content)
    assert texts(tmp_path / "words.dict") == ["rank\n   größer\n   Webster’s\n", "norm\n"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.html", "<p>größer".encode("latin-1"), "line 1 is not UTF-8: mend it or leave it out"),
        ("x.html", b"<meta charset=utf-8>\n<p>\xff", "line 2 is not utf-8, as its head says: mend it or leave it out"),
        ("x.html", b"<meta charset=klingon><p>x", "says that its encoding is klingon, which is none: correct its head"),
        ("x.html", b"%PDF-1.4 \x00", "is PDF: extract its text"),
        ("x.html", gzip.compress(b"<p>x", mtime=0), "is compressed by gzip: end its name in .gz"),
        ("x.dict.dz", b"rank\n   a rule\n", "cannot read"),
        ("x.dict", gzip.compress(b"rank\n   a rule\n", mtime=0), "is compressed by gzip: end its name in .gz"),
    ],
)
def test_a_bad_page_or_dictionary_gets_one_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        texts(tmp_path / name)
    line = str(raised.value)
    assert str(tmp_path / name) in line
    assert said in line
    assert "\n" not in line
