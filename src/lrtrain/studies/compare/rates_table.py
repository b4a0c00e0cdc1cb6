"""The best learning rate of each method among compared runs: which rates it was given, and whether more would do."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from lrtrain.studies.compare.comparison import spread
from lrtrain.studies.compare.groups import PLACES, Group
from lrtrain.tracking.runs import STUDY_TAG, TrackedRun

RATE = re.compile(r"model\.optimizers\.(.+?)\.(?:init_args\.)?lr")
SEED = re.compile(r"(.*\.)?seed(_everything)?")
JOB = re.compile(r"(-lr[\d.e+-]+|-s\d+)+$")
"""What the name of a job of our studies ends with: its learning rate and its seed."""

Rates = tuple[tuple[str, str], ...]
"""(slot, learning rate) of every optimizer of a run, as `("hidden", "0.07")`."""


@dataclass(frozen=True)
class Method:
    """Runs that differ in seeds and learning rates alone, by their rates."""

    name: str
    others: dict[str, str]
    runs: dict[Rates, list[TrackedRun]]


def best_rates(groups: Sequence[Group], metric: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a row a method with the rates that were tried and the best by the mean of the last values.

    Runs that differ in another key than a seed or a learning rate are another method. A best rate at the end of those
    that were tried says so: beyond it there may be a better one.

    Raises:
        UserError: a run has no such metric.
    """
    methods = _methods({run.id: run for group in groups for run in group.runs}.values())
    header = ["method", "runs", "learning rates tried", "best", metric, "the best is"]
    return header, [row for method in methods if (row := _row(method, methods, metric))]


def _methods(runs: Iterable[TrackedRun]) -> list[Method]:
    found: dict[tuple[tuple[str, str], ...], Method] = {}
    for run in runs:
        rates = tuple(sorted((m[1], value) for key, value in run.params.items() if (m := RATE.fullmatch(key))))
        others = {key: value for key, value in run.params.items() if not _aside(key)}
        name = run.tags.get(STUDY_TAG, JOB.sub("", run.name))
        method = found.setdefault((("", name), *sorted(others.items())), Method(name, others, {}))
        method.runs.setdefault(rates, []).append(run)
    return list(found.values())


def _aside(key: str) -> bool:
    return key.startswith(PLACES) or RATE.fullmatch(key) is not None or SEED.fullmatch(key) is not None


def _row(method: Method, methods: Sequence[Method], metric: str) -> list[str] | None:
    values = {
        rates: [float(run.series(metric).value[-1]) for run in runs] for rates, runs in method.runs.items() if rates
    }
    if not values:
        return None
    best = min(values, key=lambda rates: float(np.nan_to_num(np.mean(values[rates]), nan=np.inf)))
    tried = {slot: sorted({dict(rates).get(slot, "–") for rates in values}, key=_number) for slot, _ in best}
    varied = [slot for slot, of_slot in tried.items() if len(of_slot) > 1] or [slot for slot, _ in best][:1]
    ends = [f"the {end} {slot}" for slot in varied if (end := _end(dict(best)[slot], tried[slot]))]
    return [
        _named(method, methods),
        str(sum(len(of_rates) for of_rates in values.values())),
        "; ".join(f"{slot} {', '.join(tried[slot])}" for slot in varied),
        "; ".join(f"{slot} {dict(best)[slot]}" for slot in varied),
        spread(values[best]),
        (" and ".join(ends) + " rate tried") if ends else "between others",
    ]


def _end(rate: str, tried: Sequence[str]) -> str:
    if len(tried) == 1:
        return "only"
    return "lowest" if rate == tried[0] else "highest" if rate == tried[-1] else ""


def _named(method: Method, methods: Sequence[Method]) -> str:
    """The method's name, with the keys that tell it from others of that name."""
    same = [other.others for other in methods if other.name == method.name and other is not method]
    keys = sorted({key for other in same for key in chain(other, method.others) if _differs(key, other, method.others)})
    told = ", ".join(f"{key.rpartition('.')[2]} {method.others.get(key, '–')}" for key in keys[:3])
    more = f" and {len(keys) - 3} keys more" if len(keys) > 3 else ""
    return f"{method.name} ({told}{more})" if keys else method.name


def _differs(key: str, one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    return one.get(key) != other.get(key)


def _number(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return float("inf"), value
