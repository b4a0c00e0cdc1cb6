"""The picture of an experiment: its panels over steps, tokens, FLOPs, or over the variants' own x."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from lrtrain.studies.compare.curves import Band, Curve, band
from lrtrain.studies.compare.groups import Group
from lrtrain.studies.compare.panels import LOGARITHMIC, SPECTRAL, Panel, metric_panel, with_unit
from lrtrain.studies.experiments.arms import Trained
from lrtrain.studies.experiments.definition import Definition, Drawing
from lrtrain.studies.experiments.records import matching, value
from lrtrain.tracking.recorded import recorded


def panels(definition: Definition, trained: Sequence[Trained]) -> tuple[list[Panel], list[str]]:
    """The pictures of what has finished, and a line for each that cannot be drawn.

    Raises:
        UserError: a run has no such metric.
    """
    finished = [(one, [o for o in one.outcomes if o.status == "finished"]) for one in trained]
    groups = [
        Group(one.arm.variant.label, [run for o in outcomes if o.run_dir and (run := recorded(o.run_dir))])
        for one, outcomes in finished
        if outcomes
    ]
    if not groups:
        return [], ["no figure: no run has finished"]
    found = [_panel(wanted, groups, trained, definition.xlabel) for wanted in definition.figure]
    return [p for p in found if isinstance(p, Panel)], [reason for reason in found if isinstance(reason, str)]


def over_x(title: str, xlabel: str, ylabel: str, lines: dict[str, list[tuple[float, list[float]]]]) -> Panel:
    """A panel of values over a number: label -> points (x, values of the runs there)."""
    bands = []
    for label, points in lines.items():
        ordered = sorted(points)
        x = np.array([place for place, _ in ordered])
        columns: list[Callable[[Sequence[float]], float]] = [lambda v: float(np.mean(v)), min, max]
        mean, low, high = (np.array([column(values) for _, values in ordered]) for column in columns)
        bands.append(Band(label, min(len(values) for _, values in ordered), x, mean, low, high, float(mean[-1])))
    return Panel(title, xlabel, ylabel, bands, whole=True)


def _panel(wanted: Drawing, groups: Sequence[Group], trained: Sequence[Trained], xlabel: str) -> Panel | str:
    if wanted.over == "x":
        return _summary(wanted, trained, xlabel)
    if not wanted.metric.startswith("spectral/"):
        return metric_panel(groups, wanted.metric, wanted.over)
    bands = [b for group in groups if (b := _norms(wanted.metric, group))]
    if not bands:
        return f"no {wanted.metric}: no run logged it"
    name = wanted.metric.rpartition("/")[2]
    symbol = SPECTRAL.get(name, name)
    layers = wanted.metric.removeprefix("spectral/").removesuffix(name).strip("*/.") or "largest of the layers"
    return Panel(f"{symbol}, {layers}", "optimizer step", symbol, bands, wanted.logarithmic or name in LOGARITHMIC)


def _norms(metric: str, group: Group) -> Band | None:
    """Mean and range over runs and the layers that a pattern matches."""
    series = [one for run in group.runs for one in matching(run, metric)]
    curves = [Curve(one.step.astype(np.float64), one.value) for one in series]
    return band(group.label, len(group.runs), curves) if curves else None


def _summary(wanted: Drawing, trained: Sequence[Trained], xlabel: str) -> Panel | str:
    points = []
    for one in trained:
        values = [value(outcome, wanted.metric, "last") for outcome in one.outcomes]
        known = [v for v in values if v is not None and math.isfinite(v)]
        if one.arm.variant.x is not None and known:
            points.append((one.arm.variant.x, known))
    if not points:
        return f"no {wanted.metric} over {xlabel}: no run of a variant with an x has finished"
    return over_x(f"{wanted.metric} at the end", xlabel, with_unit(wanted.metric), {"mean over seeds": points})
