"""Web pages as documents: the text that a browser would show."""

import codecs
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import BinaryIO, ClassVar

from lrtrain.data.beginnings import BEGINNING, not_text, not_utf8
from lrtrain.data.formats import DocumentFormat
from lrtrain.runtime.errors import UserError

UNSEEN = {"script", "style", "template", "noscript", "svg", "math"}
LINE = {"br", "tr", "li", "dt", "dd", "option", "figcaption", "caption", "title"}
CELL = {"td", "th"}
PARAGRAPH = {
    "p", "div", "section", "article", "header", "footer", "main", "aside", "nav", "h1", "h2", "h3", "h4", "h5", "h6",
    "ul", "ol", "dl", "table", "blockquote", "pre", "hr", "form", "fieldset", "figure", "address", "body",
}  # fmt: skip
CHARSET = re.compile(rb"<(?:meta|\?xml)[^>]*?(?:charset|encoding)\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)


class Html(DocumentFormat):
    """A page a document: its text, a blank line between paragraphs, white space kept inside `<pre>` alone.

    Scripts and styles are left out. The encoding is UTF-8, or what a byte-order mark or the page's own head says.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".html", ".htm", ".xhtml")

    def texts(self, file: BinaryIO) -> Iterator[str]:
        page = _Page()
        page.feed(_decoded(file.read()))
        page.close()
        yield page.text()


def _decoded(content: bytes) -> str:
    """The page's characters. Raises UserError for one that is none, or in an encoding that it does not say."""
    head = content[:BEGINNING]
    declared = CHARSET.search(head)
    name = declared[1].decode() if declared and not content.startswith(codecs.BOM_UTF8) else "utf-8-sig"
    try:
        codec = codecs.lookup(name).name
    except LookupError:
        raise UserError(f"says that its encoding is {name}, which is none: correct its head") from None
    if said := not_text(head):
        raise UserError(said)
    try:
        return content.decode(codec)
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        other = f"is not {name}, as its head says: mend it or leave it out"
        raise UserError(f"line {line} {other if declared else not_utf8(head)}") from error


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._pieces: list[str] = []
        self._unseen = self._kept = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._unseen += tag in UNSEEN
        self._kept += tag == "pre"
        self._break(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        self._unseen = max(0, self._unseen - (tag in UNSEEN))
        self._kept = max(0, self._kept - (tag == "pre"))
        if tag in PARAGRAPH:
            self._break(tag)

    def handle_data(self, data: str) -> None:
        if self._unseen:
            return
        if not self._kept:
            data = re.sub(r"\s+", " ", data)
            data = data.lstrip() if not self._pieces or self._pieces[-1][-1].isspace() else data
        if data:
            self._pieces.append(data)

    def _break(self, tag: str) -> None:
        if self._unseen:
            return
        if tag in PARAGRAPH | LINE:
            self._pieces.append("\n\n" if tag in PARAGRAPH else "\n")
        elif tag in CELL:
            self.handle_data(" ")

    def text(self) -> str:
        lines = (line.rstrip() for line in "".join(self._pieces).split("\n"))
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"
