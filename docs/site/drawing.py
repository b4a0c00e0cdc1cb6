"""Figures of the concept pages, drawn while the site is built: SVG inside the page, in the color of its text."""

import functools
import html
import io
import re

import drawn_measured
import drawn_schemes
import matplotlib
from matplotlib.figure import Figure

STYLE = {
    "axes.prop_cycle": matplotlib.cycler(color=["#4c78d0", "#e07b39", "#3fa45b", "#d14b4b", "#9467bd"]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.transparent": True,
}

FIGURES = drawn_measured.FIGURES | drawn_schemes.FIGURES
"""Name -> function that draws it."""


@functools.cache
def draw(name: str, text: str) -> str:
    """A figure as one `<svg>` element; `text` is what a screen reader reads in its place."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure: Figure = FIGURES[name]()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    svg = svg.replace("#000000", "currentColor")
    width = round(float(re.search(r'width="([\d.]+)pt"', svg)[1]) * 4 / 3)  # type: ignore[index]
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'id="(?!DejaVu)([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(url\(#|href="#)(?!DejaVu)', rf"\1{name}-", svg)
    opening = f'<svg role="img" aria-label="{html.escape(text)}" style="width:{width}px" fill="currentColor"'
    return svg.replace("<svg", f'{opening} stroke-linejoin="round"', 1)
