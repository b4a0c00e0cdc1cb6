"""Formulas in TeX as drawings inside the page: no script and no font is needed to read them."""

import functools
import html
import re
from xml.etree import ElementTree

import ziamath
from latex2mathml.converter import convert

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.S)
DISPLAYED = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.S)
SIZE = 16
"""Height of the letters for which ziamath lays out a formula; one em of the page."""


def with_formulas(page: str) -> str:
    """A page whose formulas, as `pymdownx.arithmatex` marks them, are drawn."""
    page = DISPLAYED.sub(lambda found: f'<div class="formula">{drawn(html.unescape(found[1]), False)}</div>', page)
    return INLINE.sub(lambda found: drawn(html.unescape(found[1]), True), page)


@functools.cache
def drawn(tex: str, inline: bool) -> str:
    """A formula as SVG, in em, on the line of the text around it; its TeX is what a screen reader reads.

    Raises:
        ValueError: ziamath does not know a command of it.
    """
    tex = " ".join(tex.split())
    try:
        formula = ziamath.Latex(tex, size=SIZE, color="currentColor", inline=inline)
        svg = formula.svgxml()
    except Exception as error:
        raise ValueError(f"the formula {tex} cannot be drawn: {error}") from error
    if unknown := re.search(r"\\[a-zA-Z]+", convert(tex)):  # ziamath draws its letters
        raise ValueError(f"the formula {tex} cannot be drawn: {unknown[0]} is not known")
    _, top, width, height = map(float, svg.attrib["viewBox"].split())
    below = top + height
    style = f"width:{width / SIZE:.3f}em;height:{height / SIZE:.3f}em;vertical-align:{-below / SIZE:.3f}em"
    svg.attrib |= {"role": "img", "aria-label": tex, "style": style, "class": "math"}
    for size in ("width", "height"):
        svg.attrib.pop(size, None)
    return ElementTree.tostring(svg, encoding="unicode")
