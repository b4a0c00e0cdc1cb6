"""Panels as pictures. Lines are told apart by color, dash and marker; the legend is below them."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lrtrain.runtime.files import writing
from lrtrain.studies.compare.comparison import figure as digits
from lrtrain.studies.pages.drawn import Panel, Shares

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#1f2328"
"""Text, axes and the one dark line."""

# Okabe and Ito's colors, told apart by color-blind readers too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
DASHED, DOTTED = (0, (5, 2)), (0, (1, 1.3))
DASHES: tuple[Any, ...] = (
    *("-", DASHED, DOTTED, (0, (6, 2, 1, 2)), (0, (9, 2)), (0, (3, 1.5)), "-"),
    *(DOTTED, "-", DASHED, "-", DOTTED),  # of the first colors again
)
MARKERS = "os^Dv*P<>Xph"
GRAY = "#8c959f"

FEW = 6  # points of a logarithmic axis that each have their number
WIDTH, HEIGHT = 5.0, 3.1  # inches; at 375 pixels a point of the text is about a pixel
STYLE: dict[Any, Any] = {
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "lines.markersize": 4.5,
    "svg.hashsalt": "lrtrain",
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}

Look = dict[str, Any]
"""How the line of a group is drawn, as arguments of matplotlib's `plot`."""


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """One look a label, in their order; all after the twelfth are thin, gray and behind the others."""
    own = [
        {"color": color, "linestyle": dashes, "marker": marker, "linewidth": 1.7, "zorder": 3}
        for color, dashes, marker in zip(cycle(COLORS), DASHES, MARKERS, strict=False)
    ]
    rest = {"color": GRAY, "linewidth": 0.7, "zorder": 2}
    return {label: own[index] if index < len(own) else rest for index, label in enumerate(labels)}


def picture(panels: Sequence[Panel | Shares | None], labels: Sequence[str] | None, out: Path, columns: int = 2) -> None:
    """Writes a .png or .svg: one panel, or several in columns.

    Args:
        panels: None leaves a place empty.
        labels: Of all lines, for a look that is the same in all panels; None where each panel has lines of its own.
        out: The file.
        columns: At most.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    with rc_context(STYLE):
        height = max(_height(panel) for panel in panels if panel)
        size = (1.3 * WIDTH, 1.3 * height) if rows == columns == 1 else (columns * WIDTH, rows * height)
        whole = Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")
        parts = whole.subfigures(rows, columns, squeeze=False)
        for part, panel in zip(parts.flat, panels, strict=False):
            if panel:
                draw(panel, looks(_labels(panel) if labels is None else labels), part)
        with writing(f"--out {out}"):
            out.parent.mkdir(parents=True, exist_ok=True)
            whole.savefig(out)


def draw(panel: Panel | Shares, look: Mapping[str, Look], figure: Any) -> None:
    """Draws a panel into an empty figure or subfigure, with its legend below."""
    axes = figure.add_subplot()
    axes.set_title(panel.title, loc="left")
    if isinstance(panel, Shares):
        _bars(panel, axes)
    else:
        _lines(panel, look, axes)
    figure.legend(loc="outside lower left", frameon=False, ncols=1, fontsize=11, handlelength=3)


def _lines(panel: Panel, look: Mapping[str, Look], axes: "Axes") -> None:
    others = [band.label for band in panel.bands if look[band.label]["color"] == GRAY]
    for band in panel.bands:
        own = look[band.label]
        text = f"{_short(band.label)}: {digits(band.last)} ({band.runs} run{'s' if band.runs > 1 else ''})"
        if band.label in others:
            text = f"{len(others)} more" if band.label == others[0] else ""
        axes.fill_between(band.x, band.low, band.high, color=own["color"], alpha=0.18, linewidth=0)
        axes.plot(band.x, band.mean, label=text, markevery=max(1, len(band.x) // 7), **own)
    if panel.bound is not None:
        axes.axhline(panel.bound, color=INK, linewidth=0.8)
    if panel.x_logarithmic:
        _logarithmic_x(panel, axes)
    if panel.logarithmic:
        axes.set_yscale("log")
    elif not panel.whole:
        _cut_off_beginning(panel, axes)
    axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    axes.grid(alpha=0.3)


def _logarithmic_x(panel: Panel, axes: "Axes") -> None:
    """A logarithmic x with plain numbers: at each of few points, else at 1, 2 and 5 of the powers of ten, or at 1."""
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

    x = np.unique(np.concatenate([band.x for band in panel.bands]))
    several = LogLocator(subs=(1.0, 2.0, 5.0) if x[-1] < 100 * x[0] else (1.0,))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(x.tolist()) if len(x) <= FEW else several)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def _cut_off_beginning(panel: Panel, axes: "Axes") -> None:
    """Leaves the steep beginning of a falling curve outside, which would hide how the ends differ."""
    high = np.concatenate([band.high[band.x >= band.x[0] + 0.1 * np.ptp(band.x)] for band in panel.bands])
    low = np.concatenate([band.low for band in panel.bands])
    top = np.max(high, where=np.isfinite(high), initial=-np.inf if panel.bound is None else panel.bound)
    bottom = np.min(low, where=np.isfinite(low), initial=np.inf)
    if bottom < top:
        margin = 0.06 * (top - bottom)
        axes.set_ylim(bottom - margin, top + margin)


def _labels(panel: Panel | Shares) -> list[str]:
    return panel.labels if isinstance(panel, Shares) else [band.label for band in panel.bands]


def _bars(shares: Shares, axes: "Axes") -> None:
    names = [_short(label) for label in shares.labels]
    start = np.zeros(len(names))
    for (part, values), color, hatch in zip(shares.parts.items(), COLORS, ("", "///", "..."), strict=False):
        bars = axes.barh(names, values, left=start, color=color, hatch=hatch, edgecolor="white", label=part)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.85}
        texts = [f"{value:.0f} %" if value >= 12 else "" for value in values]
        axes.bar_label(bars, texts, label_type="center", color="#000000", fontsize=9, bbox=box)
        start = start + np.array(values)
    axes.set(xlim=(0, 100), xlabel="share of the measured time (%)")
    axes.tick_params(axis="y", labelsize=9)
    axes.invert_yaxis()


def _short(label: str) -> str:
    """A label that fits under a figure: the middle of a longer one is left out, where names of runs differ least."""
    label = label if len(label) <= 30 else f"{label[:13]}…{label[-16:]}"
    return label.replace("$", r"\$")  # matplotlib would read mathematics between two of them


def _height(panel: Panel | Shares) -> float:
    """Inches for a panel and the lines of its legend."""
    if isinstance(panel, Shares):
        return HEIGHT + 0.23 * 3 + max(0.0, 0.3 * len(panel.labels) - 2)
    return HEIGHT + 0.23 * min(len(panel.bands), len(DASHES) + 1)
