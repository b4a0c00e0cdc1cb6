"""The picture of an experiment: its panels over steps, tokens, FLOPs, or over the variants' own x."""

import math
from collections.abc import Sequence

import numpy as np

from lrtrain.studies.compare.curves import Curve, band
from lrtrain.studies.compare.groups import Group
from lrtrain.studies.compare.panels import LOGARITHMIC, SPECTRAL, metric_panel, with_unit
from lrtrain.studies.experiments.definition import Definition, Drawing
from lrtrain.studies.experiments.records import matching, value
from lrtrain.studies.experiments.variant_runs import Trained
from lrtrain.studies.pages.drawn import Band, Panel
from lrtrain.tracking.recorded import recorded


def finished_groups(trained: Sequence[Trained]) -> list[Group]:
    """The runs that have finished, over seeds, by the variant's label."""
    groups = []
    for runs, best in trained:
        finished = [recorded(o.run_dir) for o in best.results if o.status == "finished" and o.run_dir]
        if finished:
            groups.append(Group(runs.variant.label, [run for run in finished if run]))
    return groups


def panels(
    definition: Definition, groups: Sequence[Group], trained: Sequence[Trained]
) -> tuple[list[Panel], list[str]]:
    """The pictures of what has finished, and a line for each that cannot be drawn.

    Raises:
        UserError: a run has no such metric.
    """
    if not groups:
        return [], ["no figure: no run has finished"]
    found = [_panel(wanted, groups, trained, definition.xlabel) for wanted in definition.figure]
    return [p for p in found if isinstance(p, Panel)], [reason for reason in found if isinstance(reason, str)]


def over_x(
    title: str, xlabel: str, ylabel: str, lines: dict[str, list[tuple[float, list[float]]]], **scales: bool
) -> Panel:
    """A panel of values over a number: label -> points (x, values of the runs there); `scales` as of `Panel`."""
    bands = []
    for label, points in lines.items():
        x = np.array([place for place, _ in sorted(points)])
        found = [(float(np.mean(values)), min(values), max(values)) for _, values in sorted(points)]
        mean, low, high = (np.array(column) for column in zip(*found, strict=True))
        bands.append(Band(label, min(len(values) for _, values in points), x, mean, low, high, float(mean[-1])))
    return Panel(title, xlabel, ylabel, bands, whole=True, **scales)


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
    for runs, best in trained:
        values = [value(outcome, wanted.metric, wanted.statistic) for outcome in best.results]
        known = [v for v in values if v is not None and math.isfinite(v)]
        if runs.variant.x is not None and known:
            points.append((runs.variant.x, known))
    if not points:
        return f"no {wanted.metric} over {xlabel}: no run of a variant with an x has finished"
    when = "at the end" if wanted.statistic == "last" else f"({wanted.statistic})"
    return over_x(f"{wanted.metric} {when}", xlabel, with_unit(wanted.metric), {"mean over seeds": points})
