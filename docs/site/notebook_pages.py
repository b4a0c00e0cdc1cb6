"""The notebooks: what each is about, and the pages that `make notebooks` made of them, where it has run."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIRST = """# Notebooks

What one learns by running. `jupyter lab notebooks` opens them (`make install` brings what they need), and their
numbers are an order to read them in. `make notebooks` executes them all, minutes each, and renders them to pages;
`make docs` then takes these along, and they are linked here."""


def rendered() -> dict[str, Path]:
    """Path in the site -> page of an executed notebook."""
    made = ROOT / "build/notebooks"
    return {f"notebooks/{one.stem}.html": page for one in NOTEBOOKS if (page := made / f"{one.stem}.html").is_file()}


def page() -> str:
    """Title and first sentences of each, with a link to its page or else the name of its file."""
    parts = [FIRST]
    for notebook in NOTEBOOKS:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        begins = "".join(next(cell["source"] for cell in cells if cell["cell_type"] == "markdown"))
        title, text, *_ = begins.split("\n\n")
        place = f"notebooks/{notebook.stem}.html"
        link = f"[As it ran]({place})" if place in rendered() else f"`notebooks/{notebook.name}`"
        whole = re.match(r".*[.?](?=\s|$)", text, re.S)
        parts += [f"#{title}", whole[0] if whole else text, link]
    return "\n\n".join(parts)
