"""The picture of a fit: isoFLOP curves with their parabolas, and the optima against the budget."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lrtrain.runtime.files import writing
from lrtrain.studies.scaling.isoflop_fit import CONFIDENCE, IsoFlop, Minimum, PowerLaw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "osD^vP*Xh<>"
BLUE, VERMILION = "#0072B2", "#D55E00"  # Okabe and Ito's, told apart by color-blind readers too


def draw(iso: IsoFlop, size: str, out: Path) -> None:
    """Writes the picture; `size` says what N counts.

    Raises:
        UserError: the file cannot be written.
    """
    picture = figure(iso, size)
    with writing(f"cannot write {out}", "name a folder that can be written"):
        picture.savefig(out)


def figure(iso: IsoFlop, size: str) -> "Figure":
    """The picture, as a notebook shows it; `size` says what N counts."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    picture = Figure(figsize=(11, 4.6), dpi=150, layout="tight")
    curves, optima = picture.subplots(1, 2)
    colors = colormaps["cividis"](np.linspace(0, 0.85, len(iso.minima)))
    for minimum, color, marker in zip(iso.minima, colors, MARKERS * len(iso.minima), strict=False):
        _curve(curves, minimum, color, marker)
    curves.set(xscale="log", xlabel=f"N: {size}", ylabel="held-out loss (nats per token)")
    curves.set_title("Loss at equal training FLOPs (dashed: left out)")
    curves.margins(x=0.2)
    kept = [minimum for minimum in iso.minima if not minimum.excluded]
    budgets = np.array([minimum.budget for minimum in kept])
    sizes, tokens = (np.array([getattr(m, name) for m in kept]) for name in ("parameters", "tokens"))
    _law(optima, iso.parameters, budgets, sizes, f"N_opt ({size})", BLUE, "o", "-")
    _law(optima, iso.tokens, budgets, tokens, "D_opt (tokens)", VERMILION, "s", "--")
    optima.set(
        xscale="log",
        yscale="log",
        xlabel="C: training FLOPs of a run",
        ylabel="optimal N and D",
        title=f"Optima, power laws, {CONFIDENCE:.0%} bands",
    )
    optima.set_xticks(budgets, [f"{budget:.3g}" for budget in budgets])
    optima.minorticks_off()
    optima.margins(y=0.2)
    optima.legend(frameon=False, fontsize="small", loc="upper left")
    for axes in (curves, optima):
        axes.grid(alpha=0.3)
    return picture


def _curve(axes, minimum: Minimum, color, marker: str) -> None:  # type: ignore[no-untyped-def]
    points, parabola = minimum.points, minimum.of_parameters
    x = np.exp(np.linspace(parabola.low, parabola.high, 100))
    style = "--" if minimum.excluded else "-"
    axes.plot(x, parabola(x), style, color=color, linewidth=1.2)
    axes.plot(points.parameters, points.loss, marker, color=color, markersize=5)
    last = points.parameters.argmax()
    place = (points.parameters[last], points.loss[last])
    axes.annotate(f"{minimum.budget:.3g}", place, (7, 0), textcoords="offset points", va="center", fontsize="small")
    if not minimum.excluded:
        axes.plot(minimum.parameters, minimum.loss, "x", color="black", markersize=7, markeredgewidth=1.8)


def _law(axes, law: PowerLaw, budgets, optima, name: str, color: str, marker: str, style: str):  # type: ignore[no-untyped-def]
    interval = law.interval()
    spread = "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"
    x = np.geomspace(budgets.min() / 1.5, budgets.max() * 1.5, 60)
    axes.plot(budgets, optima, marker, color=color)
    axes.plot(x, law(x), style, color=color, label=f"{name} ∝ C^{law.exponent:.2f}{spread}")
    band = law.band(x)
    if band is not None:
        axes.fill_between(x, *band, color=color, alpha=0.2, linewidth=0)
