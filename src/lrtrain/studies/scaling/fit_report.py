"""What a fit says: its lines, its JSON, and its verdict against the published exponents."""

from typing import Any

from lrtrain.runtime.table import table
from lrtrain.studies.scaling.isoflop_fit import IsoFlop, Minimum, PowerLaw
from lrtrain.studies.scaling.parametric import NAMES, Parametric

PAPER = {"N": 0.479, "D": 0.521}
"""Exponents of N_opt and D_opt for factorized decoders (arXiv 2602.12429)."""

PAPER_BUDGETS = (2.2e18, 3.57e19)
"""The range of the training FLOPs that they were fitted over."""


def lines(iso: IsoFlop, parametric: Parametric, confidence: float) -> list[str]:
    """The fit as text: budgets, power laws, parametric law."""
    rows = [["C", "runs", "N_opt", "D_opt", "D/N", "loss"], *(_row(m) for m in iso.minima if not m.excluded)]
    out = [table(rows), *(f"{m.budget:.4g} is left out: {m.excluded}" for m in iso.minima if m.excluded)]
    share = f"{confidence:.0%}"
    for name, law in (("N_opt", iso.parameters), ("D_opt", iso.tokens)):
        out.append(f"{name} = {law.coefficient:.4g} C^{law.exponent:.3f}   {share}: {_range(law.interval(confidence))}")
    if iso.discarded:
        out.append(f"{iso.discarded:.1%} of the resamples had a budget without minimum and were discarded")
    intervals = parametric.intervals(confidence)
    values = dict(zip(NAMES, parametric.values, strict=True))
    out.append("L(N, D) = E + A/N^alpha + B/D^beta, " + share)
    found = [(name, f"{values[name]:.4g}", _range(intervals[name])) for name in NAMES]
    exponents = zip("ab", parametric.exponents(), parametric.exponent_intervals(confidence), strict=True)
    found += [(name, f"{value:.3f}", _range(interval)) for name, value, interval in exponents]
    out.append(table([("", "fit", "interval"), *found], numbers=False))
    if parametric.at_edge:
        out.append("  an exponent is at the edge of its range: these points do not determine the parametric law")
    return out


def summary(iso: IsoFlop, parametric: Parametric, confidence: float) -> dict[str, Any]:
    """The fit as plain values for JSON."""
    a, b = parametric.exponents()
    interval_a, interval_b = parametric.exponent_intervals(confidence)
    return {
        "confidence": confidence,
        "budgets": [
            {
                "budget": m.budget,
                "runs": len(m.points.loss),
                "excluded": m.excluded or None,
                **({} if m.excluded else {"parameters": m.parameters, "tokens": m.tokens, "loss": m.loss}),
            }
            for m in iso.minima
        ],
        "N_opt": _law(iso.parameters, confidence),
        "D_opt": _law(iso.tokens, confidence),
        "discarded_resamples": iso.discarded,
        "parametric": {
            **dict(zip(NAMES, map(float, parametric.values), strict=True)),
            "a": float(a),
            "b": float(b),
            "intervals": {**parametric.intervals(confidence), "a": interval_a, "b": interval_b},
            "at_edge": parametric.at_edge,
        },
        "verdict": verdict(iso, confidence),
    }


def verdict(iso: IsoFlop, confidence: float) -> str:
    """Whether the published exponents lie in the intervals; not comparable where budgets or intervals are missing."""
    budgets = [m.budget for m in iso.minima if not m.excluded]
    laws = {"N": iso.parameters, "D": iso.tokens}
    intervals = {name: law.interval(confidence) for name, law in laws.items()}
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


def _row(m: Minimum) -> list[str]:
    optimum = (f"{m.parameters:.4g}", f"{m.tokens:.4g}", f"{m.tokens / m.parameters:.3g}", f"{m.loss:.4f}")
    return [f"{m.budget:.4g}", str(len(m.points.loss)), *optimum]


def _law(law: PowerLaw, confidence: float) -> dict[str, Any]:
    return {"coefficient": law.coefficient, "exponent": law.exponent, "interval": law.interval(confidence)}


def _range(interval: tuple[float, float] | None) -> str:
    return "no interval" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"
