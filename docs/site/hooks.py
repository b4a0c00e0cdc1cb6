"""What `make docs` adds to the pages of docs/: generated references, figures, formulas and the files they need.

mkdocs calls the functions by their names. Nothing that is made here is kept in the repository.
"""

import re
from pathlib import Path

import api_pages
import command_reference
import configuration_reference
import notebook_pages
import recipe_pages
from drawing import FIGURES, draw
from formulas import with_formulas
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GENERATED = {
    **configuration_reference.PAGES,
    "reference/commands.md": command_reference.page,
    **recipe_pages.PAGES,
    **api_pages.PAGES,
    "notebooks.md": notebook_pages.page,
    "contributing.md": lambda: from_the_top("CONTRIBUTING.md"),
    "changelog.md": lambda: from_the_top("CHANGELOG.md"),
}
"""Page -> what makes its Markdown."""

ASSETS = ("iframe-worker.js", "site.css")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages, the assets and the notebooks' pages."""
    for name, make in GENERATED.items():
        files.append(File.generated(config, name, content=make()))
    copied = {f"assets/{name}": HERE / name for name in ASSETS} | notebook_pages.rendered()
    for name, path in copied.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Marks the places of figures: `![what it shows](figures/name.svg)` alone in its line."""
    return re.sub(r"^!\[([^\]]+)\]\((?:\.\./)?figures/(\w+)\.svg\)$", _place, markdown, flags=re.M)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Sets formulas and figures into the page as drawings, which take the color of its text."""
    return re.sub(r'<figure data-draw="(\w+)">(.*?)</figure>', _figure, with_formulas(html), flags=re.S)


def _place(found: re.Match[str]) -> str:
    text, name = found.groups()
    if name not in FIGURES:
        raise ValueError(f"figures/{name}.svg: drawing.py draws no figure of this name")
    return f'<figure data-draw="{name}">{text}</figure>'


def _figure(found: re.Match[str]) -> str:
    name, text = found.groups()
    return f'<figure class="drawn">{draw(name, text)}<figcaption>{text}</figcaption></figure>'


def from_the_top(name: str) -> str:
    """A page of the repository's own folder, its links as they are seen from docs/."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(r"\]\(docs/", "](", text)
