"""Formulas in TeX as drawings inside the page: no script and no font is needed to read them."""

import functools
import html
import re
import warnings
from xml.etree import ElementTree

with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of how it finds its font
    import ziamath
    from ziamath.tex import tex2mml


INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.S)
DISPLAYED = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.S)
SIZE = 16
"""Height of the letters for which ziamath lays out a formula; one em of the page."""


def with_formulas(page: str) -> str:
    """A page whose formulas, as `pymdownx.arithmatex` marks them, are drawn."""
    page = DISPLAYED.sub(lambda found: f'<div class="formula">{in_parts(html.unescape(found[1]))}</div>', page)
    return INLINE.sub(lambda found: drawn(html.unescape(found[1]), True), page)


def in_parts(tex: str) -> str:
    """A displayed formula, or several, between which `\\qquad` stands, so that a phone may break the line there."""
    parts = [tex] if "\\begin" in tex else tex.split("\\qquad")
    return " ".join(drawn(part, False) for part in parts)


@functools.cache
def drawn(tex: str, inline: bool) -> str:
    """A formula as SVG, in em, on the line of the text around it; its TeX is what a screen reader reads.

    Raises:
        ValueError: ziamath does not know a command of it.
    """
    tex = " ".join(tex.split())
    try:
        mathml = _mathml(tex, inline)
        svg = ziamath.Math(mathml, size=SIZE).svgxml()
    except Exception as error:
        raise ValueError(f"the formula {tex} cannot be drawn: {error}") from error
    if unknown := re.search(r"\\[a-zA-Z]+", mathml):  # ziamath draws its letters
        raise ValueError(f"the formula {tex} cannot be drawn: {unknown[0]} is not known")
    _, top, width, height = map(float, svg.attrib["viewBox"].split())
    below = top + height
    style = f"width:{width / SIZE:.3f}em;height:{height / SIZE:.3f}em;vertical-align:{-below / SIZE:.3f}em"
    svg.attrib |= {"role": "img", "aria-label": tex, "style": style, "class": "math"}
    for size in ("width", "height"):
        svg.attrib.pop(size, None)
    return ElementTree.tostring(svg, encoding="unicode")


def _mathml(tex: str, inline: bool) -> str:
    """MathML with the spaces that TeX itself would set: before a named operator, none after a sign, between lines."""
    tex = re.sub(r"(?<=[\w}]) (?=\\operatorname)", r" \\, ", tex)
    tex = re.sub(r"(?<=[=(,&]) ?-", "{-}", tex)
    root = ElementTree.fromstring(tex2mml(tex, inline=inline))
    root.attrib["mathcolor"] = "currentColor"
    for table in root.findall(".//{*}mtable"):
        table.attrib["rowspacing"] = "0.6em"
    return ElementTree.tostring(root, encoding="unicode")
