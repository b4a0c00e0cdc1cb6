"""An executed notebook as one HTML file: styles, pictures and formulas inside, no script."""

import html
import re
import runpy
from pathlib import Path

from nbconvert import HTMLExporter
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

FORMULA = re.compile(r"\$\$(?P<displayed>.+?)\$\$|(?<![\\$\w])\$(?P<inline>[^$\n]+?)\$(?![$\w])", re.S)
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.S)
WIDGET = "application/vnd.jupyter.widget-view+json"
SEEN = re.compile(r"\*\*What to see\.\*\* (.+?)(?=\n\n|\Z)", re.S)
"""What the text behind a picture says of it, and a screen reader in its place."""
NOTE = '<p class="note">Here the notebook has a slider, which needs a running kernel.</p>'
drawn = runpy.run_path(str(Path(__file__).parents[1] / "docs/site/formulas.py"))["drawn"]
"""(TeX, inline) -> SVG, as the site draws its formulas."""

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #fff; --text: #1b1f24; --faint: #59636e; --field: #f6f8fa; --line: #d1d9e0;
}
@media (prefers-color-scheme: dark) {
  :root { --ground: #15181c; --text: #dfe3e8; --faint: #9aa4af; --field: #1e2329; --line: #363d46; }
}
body { background: var(--ground); color: var(--text); font: 16px/1.6 system-ui, sans-serif; margin: 0; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem 1.2rem 4rem; }
h1, h2, h3 { line-height: 1.25; margin: 2rem 0 .6rem; }
a { color: #3b82f6; }
.anchor-link { display: none; }
pre, code { font: .85rem/1.5 ui-monospace, monospace; }
p code, li code, td code { background: var(--field); padding: .1em .3em; border-radius: 3px; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.highlight { background: var(--field); border: 1px solid var(--line); border-radius: 6px; }
.highlight { padding: .7rem .9rem; margin: .8rem 0 .3rem; }
.output pre { color: var(--faint); padding: .2rem .9rem; white-space: pre; overflow-x: auto; }
.prompt, .jp-InputPrompt, .jp-OutputPrompt { display: none; }
img { max-width: 100%; height: auto; border-radius: 6px; background: #fff; }
table { border-collapse: collapse; margin: .8rem 0; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .8rem; text-align: left; }
.formula { text-align: center; margin: 1rem 0; overflow-x: auto; }
svg.math { max-width: none; }
.note { color: var(--faint); font-style: italic; }
"""


def write_page(content: NotebookNode, out: Path) -> Path:
    """Writes the page of an executed notebook and returns its path."""
    content.metadata.pop("widgets", None)
    title = content.cells[0].source.partition("\n")[0].removeprefix("# ")
    seen = ""
    for cell in reversed(content.cells):
        if cell.cell_type == "markdown":
            seen = next(iter(SEEN.findall(cell.source)), seen)
            cell.source = with_formulas(cell.source)
        for output in cell.get("outputs", []):
            if WIDGET in output.get("data", {}):
                output.data = {"text/html": NOTE}
            if "image/png" in output.get("data", {}):
                output.metadata["image/png"] = {"alt": seen}
    body, _ = HTMLExporter(template_name="basic").from_notebook_node(content)
    out.parent.mkdir(parents=True, exist_ok=True)
    styles = f"{STYLE}{colors('default')}\n@media (prefers-color-scheme: dark) {{\n{colors('github-dark')}\n}}\n"
    out.write_text(
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{styles}</style>\n</head>\n'
        f"<body><main>\n{body}\n</main></body>\n</html>\n",
        encoding="utf-8",
    )
    return out


def colors(style: str) -> str:
    """The rules of a style of Pygments for words of code; the page has its own ground."""
    rules = HtmlFormatter(style=style).get_style_defs(".highlight").splitlines()
    return "\n".join(rule for rule in rules if rule.startswith(".highlight ."))


def with_formulas(markdown: str) -> str:
    """Markdown whose TeX between dollar signs, outside code, is drawn.

    Raises:
        ValueError: a command of it is not known.
    """

    def drawing(found: re.Match[str]) -> str:
        if found["inline"] is not None:
            return drawn(found["inline"], True)
        return f'\n<div class="formula">{drawn(found["displayed"], False)}</div>\n'

    pieces, end = [], 0
    for code in CODE.finditer(markdown):
        pieces += [FORMULA.sub(drawing, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*pieces, FORMULA.sub(drawing, markdown[end:])])
