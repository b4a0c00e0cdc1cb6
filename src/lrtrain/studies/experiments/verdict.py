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

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lrtrain.runtime.table import table
from lrtrain.studies.compare.comparison import figure, spread
from lrtrain.studies.experiments.definition import LOSS, Check

REPRODUCED, NOT_REPRODUCED, NOT_COMPARABLE = "reproduced", "not reproduced", "not comparable"
OWN = {REPRODUCED: "holds", NOT_REPRODUCED: "does not hold", NOT_COMPARABLE: "cannot be told"}
"""What an experiment says that is of no paper."""

LEVEL = 0.05

Measure = Callable[[str, str, str], Sequence[float | None]]
"""(variant, metric, statistic) -> one value a seed; None where the run failed, infinite where it diverged."""


@dataclass(frozen=True)
class Finding:
    """What one check came to, with its figures in a line."""

    outcome: str
    text: str
    ours: bool = False


def judge(check: Check, measure: Measure, labels: Mapping[str, str], claimed: str = "the paper's") -> Finding:
    """Looks whether a check holds; `claimed` says whose figures its ends are."""
    values = {name: list(measure(name, check.metric, check.statistic)) for name in check.variants}
    what = "" if (check.metric, check.statistic) == (LOSS, "last") else f"{check.statistic} {check.metric}: "
    missing = [labels[name] for name in check.variants if not values[name] or None in values[name]]
    if missing:
        return Finding(NOT_COMPARABLE, f"{what}not all runs of {', '.join(missing)} have a value", check.ours)
    known = {name: [value for value in values[name] if value is not None] for name in check.variants}
    if check.kind != "bound" and any(map(_alone, known.values())):
        return Finding(NOT_COMPARABLE, f"{what}one seed has no spread", check.ours)
    if check.kind == "bound":
        value = max(known[check.variants[0]], key=lambda value: _outside(check, value))
        text = f"{labels[check.variants[0]]} {figure(value)}, {claimed} {_range(check)}"
        outcome = NOT_REPRODUCED if _outside(check, value) > 0 else REPRODUCED
    elif check.kind in ("ratio", "difference"):
        outcome, text = _between(check, known, labels, claimed)
    else:
        outcome, text = (_order if check.kind == "order" else _reaches)(known, labels)
    return Finding(outcome, what + text, check.ours)


def overall(findings: Sequence[Finding], differs: str = "", of_a_paper: bool = True) -> tuple[str, str]:
    """The verdict of an experiment, and the line that says it: the worst of its findings but for our own.

    `differs` is what makes the runs another experiment than the paper's. One that is not `of_a_paper` reproduces
    nothing: its checks hold or do not.
    """
    counted = [finding for finding in findings if not finding.ours]
    outcomes = [finding.outcome for finding in counted]
    outcome = next((bad for bad in (NOT_REPRODUCED, NOT_COMPARABLE) if bad in outcomes), REPRODUCED)
    told = "; ".join(finding.text for finding in counted)
    if differs:
        return NOT_COMPARABLE, f"{NOT_COMPARABLE}: {differs}" + (f" (in these runs: {told})" if told else "")
    return outcome, f"{outcome if of_a_paper else OWN[outcome]}: {told}"


def compared(values: Mapping[str, Sequence[float | None]]) -> tuple[str, dict[str, dict[str, float]]]:
    """What is said where nothing is checked: the variants by their means, with what tells neighbors apart.

    Args:
        values: Label -> one value a seed, as `Measure` has them.

    Returns:
        The line, and p of Welch's two-sided test of each pair, NaN for less than two seeds; p is not corrected for the
        number of pairs.
    """
    missing = [label for label, own in values.items() if not own or None in own]
    known = {label: [v for v in own if v is not None] for label, own in values.items() if label not in missing}
    order = sorted(known, key=lambda label: statistics.fmean(known[label]))
    told = [f"{label} {spread(known[label])}" for label in order]
    p = {a: {b: welch(known[a], known[b], "two-sided") for b in order if b != a} for a in order}
    for index, (a, b) in enumerate(itertools.pairwise(order), start=1):
        near = p[a][b]
        sign = "?" if math.isnan(near) else "<" if near < LEVEL else "≈"
        told[index] = f"{sign} {told[index]} ({'one seed has no spread' if math.isnan(near) else f'p = {near:.2g}'})"
    lacking = [f"not all runs of {', '.join(missing)} have a value"] if missing else []
    return "; ".join([" ".join(told), *lacking] if told else lacking), p


def p_table(p: Mapping[str, Mapping[str, float]]) -> str:
    """The p values of `compared`, a row and a column a variant."""
    rows = [["p, two-sided (Welch)", *(str(number) for number in range(1, len(p) + 1))]]
    for number, (label, own) in enumerate(p.items(), start=1):
        cells = ["" if other == label else "–" if math.isnan(own[other]) else f"{own[other]:.2g}" for other in p]
        rows.append([f"{number} {label}", *cells])
    return table(rows)


def welch(first: Sequence[float], second: Sequence[float], alternative: str = "less") -> float:
    """p of Welch's test that the first mean is not below the second, or, `two-sided`, that they are equal.

    Runs that diverged are infinite: only all of them lie above what is finite. NaN where a spread is unknown.
    """
    if _alone(first) or _alone(second):
        return math.nan
    ends = [all(map(math.isfinite, values)) for values in (first, second)]
    if not all(ends):
        finite, other = (first, second) if alternative == "less" or ends[0] else (second, first)
        return 0.0 if all(map(math.isfinite, finite)) and all(map(math.isinf, other)) else 1.0
    one, two = ((statistics.fmean(values), statistics.stdev(values), len(values)) for values in (first, second))
    if one[1] == two[1] == 0:
        return float(one[0] >= two[0] if alternative == "less" else one[0] == two[0])
    from scipy.stats import ttest_ind_from_stats

    return float(ttest_ind_from_stats(*one, *two, equal_var=False, alternative=alternative).pvalue)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a mean by Student's t."""
    from scipy.stats import t

    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    return t.interval(0.95, len(values) - 1, mean, error) if error else (mean, mean)


def _alone(values: Sequence[float]) -> bool:
    """Whether there is no spread; a variant that diverged at every rate has one run, and needs no more."""
    return len(values) < 2 and math.isfinite(values[0])


def _order(values: Mapping[str, list[float]], labels: Mapping[str, str]) -> tuple[str, str]:
    names = list(values)
    text, holds = f"{labels[names[0]]} {spread(values[names[0]])}", True
    for lower, higher in itertools.pairwise(names):
        p, reverse = (welch(values[a], values[b]) for a, b in ((lower, higher), (higher, lower)))
        holds &= p < LEVEL
        sign = "<" if p < LEVEL else ">" if reverse < LEVEL else "≈"
        text += f" {sign} {labels[higher]} {spread(values[higher])} (p = {min(p, reverse):.2g})"
    return (REPRODUCED if holds else NOT_REPRODUCED), text


def _reaches(values: Mapping[str, list[float]], labels: Mapping[str, str]) -> tuple[str, str]:
    said = ", ".join(f"{labels[name]} {spread(own)}" for name, own in values.items())
    mine, other = values.values()
    above, below = welch(other, mine), welch(mine, other)
    if above < LEVEL:
        return NOT_REPRODUCED, f"{said}: above it (p = {above:.2g})"
    return REPRODUCED, f"{said}: {f'below it (p = {below:.2g})' if below < LEVEL else 'equal within the spread'}"


def _between(
    check: Check, values: Mapping[str, list[float]], labels: Mapping[str, str], claimed: str
) -> tuple[str, str]:
    pairs = list(zip(*values.values(), strict=False))
    ratio = check.kind == "ratio"
    found = [(a / b if b else math.nan) if ratio else a - b for a, b in pairs]
    what = f" {'/' if ratio else '−'} ".join(labels[name] for name in values)
    text = f"{what} is {spread(found)}, {claimed} {_range(check)}"
    if not all(map(math.isfinite, found)):
        return NOT_COMPARABLE, f"{text}: a run diverged"
    if _outside(check, statistics.fmean(found)) <= 0:
        return REPRODUCED, text
    (low, high), (least, most) = interval(found), check.between
    reaches = (least is None or high >= least) and (most is None or low <= most)
    return (NOT_COMPARABLE, f"{text}: within its spread") if reaches else (NOT_REPRODUCED, text)


def _outside(check: Check, value: float) -> float:
    """How far a value lies outside, negative inside."""
    low, high = check.between
    return max(-math.inf if low is None else low - value, -math.inf if high is None else value - high)


def _range(check: Check) -> str:
    low, high = check.between
    if low is None:
        return f"at most {high:g}"
    return f"at least {low:g}" if high is None else f"{low:g} to {high:g}"
