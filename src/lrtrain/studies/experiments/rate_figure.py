"""Pictures over the learning rate: a line a size, or a line a method."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from lrtrain.studies.compare.panels import LOGARITHMIC, SPECTRAL, with_unit
from lrtrain.studies.experiments.definition import Definition, Drawing
from lrtrain.studies.experiments.experiment_figure import over_x
from lrtrain.studies.experiments.rate_curves import Mapped
from lrtrain.studies.experiments.rate_optimum import optimum
from lrtrain.studies.experiments.records import value
from lrtrain.studies.experiments.variant_runs import VariantRuns
from lrtrain.studies.pages.drawn import Band, Panel


def rate_panels(definition: Definition, mapped: Sequence[Mapped]) -> tuple[list[Panel | None], list[str]]:
    """A panel a drawing with a line a variant; with axes one for each variant and axis, with a line a size.

    A place of the grid of panels that a variant has no axis for is None. A line stands for each that has no run.
    """
    found: list[Panel | None] = []
    notes: list[str] = []
    for drawing in definition.figure:
        if not definition.scale.options.axes:
            lines = {one.sized.variant.label: (one, one.sized.center) for one in mapped}
            found.append(_panel(drawing, _title(drawing), lines.items(), notes))
            continue
        for one in mapped:
            for axis in definition.scale.options.axes:
                sizes = one.sized.lines.get(axis.name, {})
                labels = [(f"{axis.name} {size:g}", (one, runs)) for size, runs in sizes.items()]
                title = f"{one.sized.variant.label}: {_title(drawing)}"
                found.append(_panel(drawing, title, labels, notes) if labels else None)
    return (found if any(found) else []), notes


def _panel(
    drawing: Drawing, title: str, lines: Iterable[tuple[str, tuple[Mapped, VariantRuns]]], notes: list[str]
) -> Panel | None:
    """The legend has the best learning rate, and what is drawn at the best one of those that were tried."""
    points: dict[str, list[tuple[float, list[float]]]] = {}
    best: dict[str, float] = {}
    for label, (one, runs) in lines:
        known = []
        for lr, outcomes in one.curves[runs.name].items():
            values = [value(outcome, drawing.metric, drawing.statistic) for outcome in outcomes]
            if finite := [number for number in values if number is not None and math.isfinite(number)]:
                known.append((lr, finite))
        if known:
            losses = one.losses(runs)
            label = f"{label}, lr {optimum(losses).lr:.2g}"
            points[label], best[label] = known, min(losses, key=lambda lr: losses[lr])
    if not points:
        notes.append(f"no figure of {title}: no run has finished")
        return None
    name = drawing.metric.rpartition("/")[2]
    unit = SPECTRAL.get(name, name) if drawing.metric.startswith("spectral/") else with_unit(drawing.metric)
    steep = drawing.logarithmic or name in LOGARITHMIC
    panel = over_x(title, "learning rate", unit, points, x_logarithmic=True, logarithmic=steep)
    return replace(panel, bands=[_with_best(band, best[band.label]) for band in panel.bands])


def _with_best(band: Band, lr: float) -> Band:
    return replace(band, last=float(band.mean[band.x == lr].sum()) if lr in band.x else math.nan)


def _title(drawing: Drawing) -> str:
    name = drawing.metric.rpartition("/")[2]
    what = SPECTRAL.get(name, drawing.metric) if drawing.metric.startswith("spectral/") else drawing.metric
    return f"{'' if drawing.statistic == 'last' else f'{drawing.statistic} '}{what} over lr"
