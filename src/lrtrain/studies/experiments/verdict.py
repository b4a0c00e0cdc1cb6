"""Whether the runs show what the paper claims. A difference counts only when it exceeds the spread over seeds.

| check | holds where |
|---|---|
| order: [a, b, c] | each mean lies below the next one's: Welch's t-test, one-sided, p < 0.05 |
| reaches: [a, b] | a's mean does not lie above b's by that test |
| ratio: [a, b] | the mean over seeds of a / b lies in `between` |
| difference: [a, b] | the mean over seeds of a − b does |
| bound: [a] | every run's value does |

A ratio or difference outside of `between` whose 95 % interval (Student's t) reaches into it cannot be told. Nor can
anything that runs failed for, or that one seed alone was run for; a bound needs no spread.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lrtrain.studies.compare.comparison import figure, spread
from lrtrain.studies.experiments.definition import LOSS, Check

REPRODUCED, NOT_REPRODUCED, NOT_COMPARABLE = "reproduced", "not reproduced", "not comparable"
LEVEL = 0.05

Measure = Callable[[str, str, str], Sequence[float | None]]
"""(variant, metric, statistic) -> one value a seed; None where the run failed, infinite where it diverged."""


@dataclass(frozen=True)
class Finding:
    """What one check came to, with its figures in a line."""

    outcome: str
    text: str
    ours: bool = False


def judge(check: Check, measure: Measure, labels: Mapping[str, str]) -> Finding:
    """Looks whether a check holds."""
    values = {name: list(measure(name, check.metric, check.statistic)) for name in check.variants}
    what = "" if (check.metric, check.statistic) == (LOSS, "last") else f"{check.statistic} {check.metric}: "
    missing = [labels[name] for name in check.variants if not values[name] or None in values[name]]
    if missing:
        return Finding(NOT_COMPARABLE, f"{what}not all runs of {', '.join(missing)} have a value", check.ours)
    known = {name: [value for value in values[name] if value is not None] for name in check.variants}
    # A variant that diverged at every rate has one run, and needs no more to lie above all others.
    alone = any(len(own) < 2 and math.isfinite(own[0]) for own in known.values())
    if alone and check.kind != "bound":
        return Finding(NOT_COMPARABLE, f"{what}one seed has no spread", check.ours)
    outcome, text = RULES[check.kind](check, known, labels)
    return Finding(outcome, what + text, check.ours)


def overall(findings: Sequence[Finding], differs: str = "") -> tuple[str, str]:
    """The verdict of an experiment, and the line that says it: the worst of its findings but for our own.

    `differs` is what makes the runs another experiment than the paper's.
    """
    counted = [finding for finding in findings if not finding.ours]
    outcomes = [finding.outcome for finding in counted]
    outcome = next((bad for bad in (NOT_REPRODUCED, NOT_COMPARABLE) if bad in outcomes), REPRODUCED)
    told = "; ".join(finding.text for finding in counted)
    if differs:
        return NOT_COMPARABLE, f"{NOT_COMPARABLE}: {differs}" + (f" (in these runs: {told})" if told else "")
    return outcome, f"{outcome}: {told}"


def below(first: Sequence[float], second: Sequence[float]) -> float:
    """p of Welch's one-sided test that the first mean is not below the second; runs that diverged are infinite.

    Source: B. L. Welch, Biometrika 34 (1947): Student's t with ν = (Σ vᵢ)² / Σ (vᵢ² / (nᵢ − 1)), vᵢ = s²ᵢ / nᵢ.
    """
    if not all(map(math.isfinite, (*first, *second))):
        return 0.0 if all(map(math.isfinite, first)) and all(map(math.isinf, second)) else 1.0
    squares = [statistics.variance(values) / len(values) for values in (first, second)]
    apart, error = statistics.fmean(first) - statistics.fmean(second), math.sqrt(sum(squares))
    if error == 0:
        return float(apart >= 0)
    from scipy.stats import t

    shares = [square / sum(squares) for square in squares]
    inverse = sum(share**2 / (len(values) - 1) for share, values in zip(shares, (first, second), strict=True))
    return float(t.cdf(apart / error, 1 / inverse))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a mean by Student's t."""
    from scipy.stats import t

    mean = statistics.fmean(values)
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def _order(check: Check, values: Mapping[str, list[float]], labels: Mapping[str, str]) -> tuple[str, str]:
    text, holds = f"{labels[check.variants[0]]} {spread(values[check.variants[0]])}", True
    for lower, higher in zip(check.variants, check.variants[1:], strict=False):
        p, reverse = (below(values[a], values[b]) for a, b in ((lower, higher), (higher, lower)))
        holds &= p < LEVEL
        sign = "<" if p < LEVEL else ">" if reverse < LEVEL else "≈"
        text += f" {sign} {labels[higher]} {spread(values[higher])} (p = {min(p, reverse):.2g})"
    return (REPRODUCED if holds else NOT_REPRODUCED), text


def _reaches(check: Check, values: Mapping[str, list[float]], labels: Mapping[str, str]) -> tuple[str, str]:
    mine, other = check.variants
    p = below(values[other], values[mine])
    said = f"{labels[mine]} {spread(values[mine])}, {labels[other]} {spread(values[other])}"
    if p < LEVEL:
        return NOT_REPRODUCED, f"{said}: above it (p = {p:.2g})"
    ahead = below(values[mine], values[other])
    return REPRODUCED, f"{said}: {f'below it (p = {ahead:.2g})' if ahead < LEVEL else 'equal within the spread'}"


def _ratio(check: Check, values: Mapping[str, list[float]], labels: Mapping[str, str]) -> tuple[str, str]:
    return _between(check, values, labels, "/", lambda a, b: a / b if b else math.nan)


def _difference(check: Check, values: Mapping[str, list[float]], labels: Mapping[str, str]) -> tuple[str, str]:
    return _between(check, values, labels, "−", lambda a, b: a - b)


def _between(
    check: Check, values: Mapping[str, list[float]], labels: Mapping[str, str], sign: str, of: Callable[..., float]
) -> tuple[str, str]:
    one, other = check.variants
    found = [of(a, b) for a, b in zip(values[one], values[other], strict=False)]
    text = f"{labels[one]} {sign} {labels[other]} is {spread(found)}, the paper's {_range(check)}"
    if not all(map(math.isfinite, found)):
        return NOT_COMPARABLE, f"{text}: a run diverged"
    if _inside(check, statistics.fmean(found)):
        return REPRODUCED, text
    low, high = interval(found)
    reaches = (check.low is None or high >= check.low) and (check.high is None or low <= check.high)
    return (NOT_COMPARABLE, f"{text}: within its spread") if reaches else (NOT_REPRODUCED, text)


def _bound(check: Check, values: Mapping[str, list[float]], labels: Mapping[str, str]) -> tuple[str, str]:
    (name,) = check.variants
    worst = max(values[name], key=lambda value: _outside(check, value))
    text = f"{labels[name]} {figure(worst)}, the paper's {_range(check)}"
    return (REPRODUCED if _inside(check, worst) else NOT_REPRODUCED), text


def _outside(check: Check, value: float) -> float:
    """How far a value lies outside, negative inside."""
    ends = [] if check.low is None else [check.low - value]
    return max([*ends, *([] if check.high is None else [value - check.high])])


def _inside(check: Check, value: float) -> bool:
    return _outside(check, value) <= 0


def _range(check: Check) -> str:
    if check.low is None:
        return f"at most {check.high:g}"
    return f"at least {check.low:g}" if check.high is None else f"{check.low:g} to {check.high:g}"


RULES: dict[str, Callable[[Check, Mapping[str, list[float]], Mapping[str, str]], tuple[str, str]]] = {
    "order": _order,
    "reaches": _reaches,
    "ratio": _ratio,
    "difference": _difference,
    "bound": _bound,
}
