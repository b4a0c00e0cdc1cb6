"""Fitting the laws, and what the fit says: its lines, JSON, picture, and verdict against the published exponents."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lrtrain.runtime.files import write_atomically, writing
from lrtrain.runtime.table import table
from lrtrain.studies.scaling.isoflop_figure import draw
from lrtrain.studies.scaling.isoflop_fit import CONFIDENCE, IsoFlop, fit
from lrtrain.studies.scaling.parametric import NAMES, Parametric, fit_parametric
from lrtrain.studies.scaling.points import POINTS, read_points

COUNTED = {"all": "parameters", "non-embedding": "non_embedding"}
"""What counts as N -> the column of `points.csv`."""

PAPER = {"N": 0.479, "D": 0.521}
"""Exponents of N_opt and D_opt for factorized decoders (arXiv 2602.12429)."""

PAPER_BUDGETS = (2.2e18, 3.57e19)
"""The range of the training FLOPs that they were fitted over."""


def fit_laws(
    points: Path,
    tell: Callable[[str], None],
    parameters: str = "all",
    resamples: int = 1000,
    seed: int = 0,
    out: Path | None = None,
) -> dict[str, Any]:
    """Fits the laws to `points.csv`, writes `fit.json` and `fit.png` beside it or into `out`, and returns the former.

    Args:
        points: A CSV, or the folder of a plan.
        tell: Takes the lines of the report.
        parameters: What counts as N, a key of `COUNTED`.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
        out: Folder of both files.

    Raises:
        UserError: the points tell no law, or a file cannot be written.
    """
    file = points / POINTS if points.is_dir() else points
    found = read_points(file, COUNTED[parameters])
    iso = fit(found, resamples, seed)
    told = summary(iso, fit_parametric(found, resamples, seed))
    tell("\n".join(lines(told)))
    folder = out or file.parent
    content = {"points": str(file), "parameters": parameters, "resamples": resamples, "seed": seed, **told}
    with writing(f"cannot write into {folder}", "name another folder with --out"):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "fit.json", (json.dumps(content, indent=2) + "\n").encode())
    draw(iso, f"{parameters} parameters", folder / "fit.png")
    tell(f"wrote {folder / 'fit.json'} and {folder / 'fit.png'}")
    return content


def lines(fit: dict[str, Any]) -> list[str]:
    """A summary as text: budgets, power laws, parametric law."""
    rows, left_out = [["C", "runs", "N_opt", "D_opt", "D/N", "loss"]], []
    for of in fit["budgets"]:
        if of["excluded"]:
            left_out.append(f"{of['budget']:.4g} is left out: {of['excluded']}")
            continue
        optimum = (f"{of['parameters']:.4g}", f"{of['tokens']:.4g}", f"{of['tokens'] / of['parameters']:.3g}")
        rows.append([f"{of['budget']:.4g}", str(of["runs"]), *optimum, f"{of['loss']:.4f}"])
    out, share = [table(rows), *left_out], f"{fit['confidence']:.0%}"
    for name in ("N_opt", "D_opt"):
        law = fit[name]
        out.append(f"{name} = {law['coefficient']:.4g} C^{law['exponent']:.3f}   {share}: {_range(law['interval'])}")
    if fit["discarded_resamples"]:
        out.append(f"{fit['discarded_resamples']:.1%} of the resamples had less than two minima and were discarded")
    out.append(f"L(N, D) = E + A/N^alpha + B/D^beta, {share}")
    law = fit["parametric"]
    found = [(name, f"{law[name]:.4g}", _range(interval)) for name, interval in law["intervals"].items()]
    out.append(table([("", "fit", "interval"), *found], numbers=False))
    if law["at_edge"]:
        out.append("  an exponent is at the edge of its range: these points do not determine the parametric law")
    return out


def summary(iso: IsoFlop, parametric: Parametric) -> dict[str, Any]:
    """The fit as plain values for JSON."""
    a, b = parametric.exponents()
    interval_a, interval_b = parametric.exponent_intervals()
    budgets = [{"budget": m.budget, "runs": len(m.points.loss), "excluded": m.excluded or None} for m in iso.minima]
    for of, m in zip(budgets, iso.minima, strict=True):
        of |= {} if m.excluded else {"parameters": m.parameters, "tokens": m.tokens, "loss": m.loss}
    laws = {
        name: {"coefficient": law.coefficient, "exponent": law.exponent, "interval": law.interval()}
        for name, law in (("N_opt", iso.parameters), ("D_opt", iso.tokens))
    }
    return {
        "confidence": CONFIDENCE,
        "budgets": budgets,
        **laws,
        "discarded_resamples": iso.discarded,
        "parametric": {
            **dict(zip(NAMES, map(float, parametric.values), strict=True)),
            "a": float(a),
            "b": float(b),
            "intervals": {**parametric.intervals(), "a": interval_a, "b": interval_b},
            "at_edge": parametric.at_edge,
        },
        "verdict": verdict(iso),
    }


def verdict(iso: IsoFlop) -> str:
    """Whether the published exponents lie in the intervals; not comparable where budgets or intervals are missing."""
    budgets = [m.budget for m in iso.minima if not m.excluded]
    laws = {"N": iso.parameters, "D": iso.tokens}
    intervals = {name: law.interval() for name, law in laws.items()}
    figures = ", ".join(
        f"{name}_opt exponent {law.exponent:.3f} ({_range(intervals[name])}; paper {PAPER[name]})"
        for name, law in laws.items()
    )
    if None in intervals.values():
        return f"not comparable, no interval: {figures}"
    if max(budgets) < PAPER_BUDGETS[0] or min(budgets) > PAPER_BUDGETS[1]:
        span, paper = f"{min(budgets):.3g} to {max(budgets):.3g}", f"{PAPER_BUDGETS[0]:.3g} to {PAPER_BUDGETS[1]:.3g}"
        return f"not comparable, budgets {span} FLOPs where the paper has {paper}: {figures}"
    inside = all(pair and pair[0] <= PAPER[name] <= pair[1] for name, pair in intervals.items())
    return f"{'reproduced' if inside else 'not reproduced'}: {figures}"


def _range(interval: tuple[float, float] | None) -> str:
    return "no interval" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"
