"""Panels as pictures. Lines are told apart by color, dash, marker and a letter at their end."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

import numpy as np

from lrtrain.runtime.files import writing
from lrtrain.studies.compare.comparison import figure as digits
from lrtrain.studies.compare.curves import Band
from lrtrain.studies.compare.panels import Panel, Shares

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#1f2328"
"""Text, axes and the one dark line; a page replaces it by its own color of text."""

# Okabe and Ito's colors, told apart by color-blind readers too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.3)), (0, (6, 2, 1, 2)), (0, (9, 2)), (0, (3, 1.5)), "-")
MARKERS = "os^Dv*P"
GRAY = "#8c959f"

LETTER = 0.075  # height of a letter, as a share of the axes
WIDTH, HEIGHT = 5.0, 3.1  # inches; at 375 pixels a point of the text is about a pixel
STYLE: dict[Any, Any] = {
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "svg.hashsalt": "lrtrain",
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True)
class Look:
    """How a group is drawn: all the groups after the seventh are gray and have no letter."""

    letter: str
    color: str
    dashes: Any
    marker: str


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """One look a label, in their order."""
    own = [Look(*look) for look in zip(ascii_uppercase, COLORS, DASHES, MARKERS, strict=False)]
    rest = Look("", GRAY, "-", "")
    return {label: own[index] if index < len(own) else rest for index, label in enumerate(labels)}


def picture(panels: Sequence[Panel | Shares], labels: Sequence[str], out: Path) -> None:
    """Writes a .png or .svg: one panel, or several in two columns.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    look = looks(labels)
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    with rc_context(STYLE):
        height = max(_height(panel) for panel in panels)
        size = (1.3 * WIDTH, 1.3 * height) if rows == columns == 1 else (columns * WIDTH, rows * height)
        whole = Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")
        parts = whole.subfigures(rows, columns, squeeze=False)
        for part, panel in zip(parts.flat, panels, strict=False):
            draw(panel, look, part)
        with writing(f"--out {out}"):
            out.parent.mkdir(parents=True, exist_ok=True)
            whole.savefig(out)


def inline_svg(panel: Panel | Shares, look: Mapping[str, Look], name: str) -> str:
    """A panel as an `<svg>` element for a page: transparent, dark parts in the page's color of text, own ids."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        whole = Figure(figsize=(WIDTH, _height(panel)), layout="constrained", facecolor="none")
        draw(panel, look, whole, title=False)
        buffer = io.StringIO()
        whole.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    for mark in ('id="', 'href="#', "url(#"):
        text = text.replace(mark, f"{mark}{name}-")
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(panel.title)}"', 1)


def draw(panel: Panel | Shares, look: Mapping[str, Look], figure: Any, title: bool = True) -> None:
    """Draws a panel into an empty figure or subfigure, with its legend below."""
    axes = figure.add_subplot()
    if title:
        axes.set_title(panel.title, loc="left")
    if isinstance(panel, Shares):
        _bars(panel, look, axes)
        figure.legend(loc="outside lower left", frameon=False, ncols=1, fontsize=11)
        return
    others = [band.label for band in panel.bands if not look[band.label].letter]
    for band in panel.bands:
        own, text = look[band.label], f"{len(others)} more"
        if own.letter:
            runs = f"{band.runs} run{'s' if band.runs > 1 else ''}"
            text = f"{own.letter}  {_short(band.label)}: {digits(band.last)} ({runs})"
        _line(band, own, "" if band.label in others[1:] else text, axes)
    if panel.bound is not None:
        axes.axhline(panel.bound, color=INK, linewidth=0.8)
    _limits(panel, axes)
    axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    axes.grid(alpha=0.3)
    _letters(panel, look, axes)
    figure.legend(loc="outside lower left", frameon=False, ncols=1, fontsize=11, handlelength=3)


def _line(band: Band, look: Look, text: str, axes: "Axes") -> None:
    mean, low, high = (np.where(np.isfinite(y), y, np.nan) for y in (band.mean, band.low, band.high))
    order = 3 if look.letter else 2
    axes.fill_between(band.x, low, high, color=look.color, alpha=0.18, linewidth=0, zorder=order - 1)
    axes.plot(
        band.x,
        mean,
        color=look.color,
        linestyle=look.dashes,
        marker=look.marker,
        markersize=4.5,
        markevery=max(1, len(band.x) // 7),
        linewidth=1.7 if look.letter else 0.7,
        label=text,
        zorder=order,
    )


def _short(label: str) -> str:
    """A label that fits under a figure: the middle of a longer one is left out, where names of runs differ least."""
    label = label if len(label) <= 30 else f"{label[:13]}…{label[-16:]}"
    return label.replace("$", r"\$")  # matplotlib would read mathematics between two of them


def _limits(panel: Panel, axes: "Axes") -> None:
    """Leaves the steep beginning of a falling curve outside, which would hide how the ends differ."""
    if panel.logarithmic:
        axes.set_yscale("log")
    if panel.logarithmic or panel.whole:
        return
    later = [band.high[band.x >= band.x[0] + 0.1 * np.ptp(band.x)] for band in panel.bands]
    high = np.concatenate(later)
    low = np.concatenate([band.low for band in panel.bands])
    high, low = high[np.isfinite(high)], low[np.isfinite(low)]
    if high.size and low.size and high.max() > low.min():
        top = max(high.max(), panel.bound or -np.inf)
        margin = 0.06 * (top - low.min())
        axes.set_ylim(low.min() - margin, top + margin)


def _letters(panel: Panel, look: Mapping[str, Look], axes: "Axes") -> None:
    """A letter beside the end of each line, moved up or down as little as keeps them apart."""
    from scipy.optimize import isotonic_regression

    axes.autoscale_view()  # what is not set is else found when the figure is drawn, too late for a place in the axes
    ends = []
    for band in panel.bands:
        end = (band.x[-1], band.mean[-1])
        if look[band.label].letter and np.isfinite(end).all():
            x, y = axes.transAxes.inverted().transform(axes.transData.transform(end))
            ends.append((float(np.clip(y, 0.0, 1.0)), float(x), look[band.label]))
    if not ends:
        return
    ends.sort(key=lambda end: end[0])
    # The nearest heights with these gaps are the nearest increasing sequence, once the gaps are taken out.
    gaps = LETTER * np.arange(len(ends))
    heights = isotonic_regression([y for y, _, _ in ends] - gaps).x + gaps
    heights -= max(0.0, heights[-1] - 1)
    heights += max(0.0, LETTER / 2 - heights[0])
    for height, (_, x, own) in zip(heights, ends, strict=True):
        axes.text(x + 0.015, height, own.letter, color=own.color, weight="bold", va="center", transform=axes.transAxes)


def _bars(shares: Shares, look: Mapping[str, Look], axes: "Axes") -> None:
    names = [look[label].letter or _short(label) for label in shares.labels]
    rows = np.arange(len(names))
    start = np.zeros(len(names))
    for (part, values), color, hatch in zip(shares.parts.items(), COLORS, ("", "///", "..."), strict=False):
        axes.barh(rows, values, left=start, color=color, hatch=hatch, edgecolor="white", linewidth=0.5, label=part)
        for row, (value, left) in enumerate(zip(values, start, strict=True)):
            if value >= 8:
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.85}
                axes.text(left + value / 2, row, f"{value:.0f} %", color="#000000", ha="center", va="center", bbox=box)
        start = start + np.array(values)
    axes.set_yticks(rows, names)
    axes.set_xlim(0, 100)
    axes.invert_yaxis()
    axes.set_xlabel("share of the measured time (%)")


def _height(panel: Panel | Shares) -> float:
    lines = 3 if isinstance(panel, Shares) else min(len(panel.bands), len(COLORS) + 1)
    bars = max(0.0, 0.3 * len(panel.labels) - 2) if isinstance(panel, Shares) else 0.0
    return HEIGHT + 0.23 * lines + bars
