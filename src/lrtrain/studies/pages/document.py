"""One HTML page: its parts as text, and the file with styles, scripts and the points of all figures inside."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from string import Template

from lrtrain.runtime.files import write_atomically, writing
from lrtrain.studies.pages.drawn import Choice, Heatmap, Panel, Shares
from lrtrain.studies.pages.figure_json import as_json

SCRIPTS = ("charts.js", "heatmaps.js", "tables.js", "begin.js")

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<h1>$title</h1>
<p class="soft">$subtitle</p>
$body
<noscript><p class="missing">The figures are drawn by a script inside this page, and scripts are off.</p></noscript>
<script type="application/json" id="data">$data</script>
<script>
"use strict";
$script</script>
</body>
</html>
""")


class Document:
    """The parts of a page in their order; figures are numbered as they are added."""

    def __init__(self) -> None:
        self._body: list[str] = []
        self._figures: list[object] = []
        self._headings: list[tuple[str, str]] = []

    def add(self, html: str) -> None:
        """Adds a piece of HTML as it is."""
        self._body.append(html)

    def section(self, title: str, text: str = "") -> None:
        """Begins a section, with a sentence below its title."""
        name = "part-" + "".join(letter if letter.isalnum() else "-" for letter in title.lower())
        self._headings.append((name, title))
        self.add(f'<h2 id="{name}">{escape(title)}</h2>')
        if text:
            self.add(f'<p class="soft">{escape(text)}</p>')

    def missing(self, text: str) -> None:
        """Says what is not there, and why."""
        self.add(f'<p class="missing">{escape(text)}</p>')

    @contextmanager
    def folded(self, summary: str) -> Iterator[None]:
        """What is added inside `with` is shown on a click."""
        self.add(f"<details><summary>{escape(summary)}</summary>")
        yield
        self.add("</details>")

    def figures(self, figures: Sequence[Choice | Panel | Heatmap | Shares]) -> None:
        """Adds figures, two in a row where there is room; heatmaps and shares of many labels take a whole one."""
        if figures:
            self.add(f'<div class="figures">{"".join(map(self._figure, figures))}</div>')

    def _figure(self, figure: Choice | Panel | Heatmap | Shares) -> str:
        caption = f"<figcaption>{escape(figure.title)}</figcaption>"
        if isinstance(figure, Shares):
            return f"<figure>{caption}{_bars(figure)}</figure>"
        self._figures.append(as_json(figure))
        wide = ' class="wide"' if isinstance(figure, Heatmap) else ""
        return f'<figure{wide} data-chart="{len(self._figures) - 1}">{caption}</figure>'

    def write(self, title: str, subtitle: str, out: Path, why: str) -> None:
        """Writes the page; the links to its sections come first.

        Raises:
            UserError: the file cannot be written; its line begins with `why`.
        """
        here = Path(__file__).parent
        links = "".join(f'<a href="#{name}">{escape(text)}</a>' for name, text in self._headings)
        text = PAGE.substitute(
            title=escape(title),
            subtitle=escape(subtitle),
            body="\n".join([f"<nav>{links}</nav>", *self._body]),
            style=(here / "page.css").read_text(encoding="utf-8"),
            data=json.dumps(self._figures, allow_nan=False, separators=(",", ":")).replace("</", r"<\/"),
            script="\n".join((here / name).read_text(encoding="utf-8") for name in SCRIPTS),
        )
        with writing(why):
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(out, text.encode())


def table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table that scrolls inside itself; `kind`: classes of it, of which `sortable` orders rows by a click."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    inside = f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>"
    return f'<div class="scroll" tabindex="0"><table class="{kind}">{inside}</table></div>'


def bullets(lines: Sequence[str]) -> str:
    """A list of lines; nothing where there are none."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _bars(shares: Shares) -> str:
    """Bars of HTML alone, with the numbers in a key below."""
    rows = []
    for index, label in enumerate(shares.labels):
        values = [(name, of_part[index]) for name, of_part in shares.parts.items()]
        parts = "".join(
            f'<span class="p{place % 4}" style="width:{value:.2f}%" title="{escape(name)} {value:.1f} %">'
            f"{f'{value:.0f} %' if value >= 8 else ''}</span>"
            for place, (name, value) in enumerate(values)
        )
        numbers = ", ".join(f"{value:.1f} %" for _, value in values)
        rows.append(f'<div class="soft">{escape(label)}: {numbers}</div><div class="bar">{parts}</div>')
    key = "<br>".join(
        f'<span class="key p{place % 4}"></span>{escape(name)}' for place, name in enumerate(shares.parts)
    )
    return f'{"".join(rows)}<div class="soft">{key}</div>'
