"""The figures of one run: curves of its metrics over any axis, its layers over steps, its loss by position."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lrtrain.studies.compare.curves import AXES, NAMES, Curve, band, curve
from lrtrain.studies.compare.panels import LOGARITHMIC, SPECTRAL, axis_scale, with_unit
from lrtrain.studies.pages.drawn import Band, Choice, Heatmap, Panel
from lrtrain.tracking.runs import TrackedRun

FIRST = ("update_over_lr", "effective_rank", "orthonormality_error")
"""Figures of layers that a reader looks for first."""

COURSES = 6
"""Validations whose loss by position is drawn at most."""


def lines(run: TrackedRun, metrics: Mapping[str, str], ylabel: str, whole: bool = False) -> dict[str, Panel]:
    """A panel over each axis that the run logged, with a line for each of the metrics (label: metric) that it has."""
    panels = {}
    for axis in AXES:
        known = {label: curve(run, metric, axis) for label, metric in metrics.items() if metric in run.metrics}
        curves = {label: one for label, one in known.items() if one is not None}
        if not curves:
            continue
        divisor, xlabel = axis_scale(axis, max(one.x[-1] for one in curves.values()))
        bands = [band(label, 1, [Curve(one.x / divisor, one.y)]) for label, one in curves.items()]
        panels[NAMES[axis]] = Panel(ylabel, xlabel, ylabel, [one for one in bands if one is not None], whole=whole)
    return panels


def choice(title: str, run: TrackedRun, metrics: Sequence[str]) -> Choice | None:
    """Those of the metrics that the run has, of which one is shown at a time; None without any."""
    panels = {with_unit(metric): lines(run, {metric: metric}, with_unit(metric)) for metric in metrics}
    found = {name: of_metric for name, of_metric in panels.items() if of_metric}
    return Choice(title, found) if found else None


def together(
    title: str, ylabel: str, run: TrackedRun, metrics: Mapping[str, str], whole: bool = False
) -> Choice | None:
    """All of the metrics (label: metric) that the run has, in one panel; None without any."""
    panels = lines(run, metrics, ylabel, whole)
    return Choice(title, {ylabel: panels}) if panels else None


def heatmaps(run: TrackedRun) -> tuple[list[Heatmap], list[Heatmap]]:
    """The layers that telemetry measured, a row a layer: the figures looked for first, and the others."""
    by_figure: dict[str, dict[str, str]] = {}
    for metric in run.metrics:
        layer, _, figure = metric.removeprefix("spectral/").rpartition("/")
        if metric.startswith("spectral/") and layer:
            by_figure.setdefault(figure, {})[layer] = metric
    order = [*FIRST, *(name for name in SPECTRAL if name not in FIRST)]
    names = sorted(by_figure, key=lambda name: (order.index(name) if name in order else len(order), name))
    found = {name: _heatmap(name, run, by_figure[name]) for name in names}
    return [one for name, one in found.items() if name in FIRST], [
        one for name, one in found.items() if name not in FIRST
    ]


def _heatmap(figure: str, run: TrackedRun, metrics: Mapping[str, str]) -> Heatmap:
    steps = np.unique(np.concatenate([run.metrics[metric].step for metric in metrics.values()]))
    layers = sorted(metrics, key=_by_kind)
    values = np.full((len(layers), len(steps)), np.nan)
    for row, layer in enumerate(layers):
        series = run.metrics[metrics[layer]]
        values[row, np.searchsorted(steps, series.step)] = series.value
    labels = [layer.removeprefix("decoder.") for layer in layers]
    return Heatmap(SPECTRAL.get(figure, figure), steps, labels, values, figure in LOGARITHMIC)


def _by_kind(layer: str) -> tuple[list[str], list[int]]:
    """Layers of one kind beside each other, by their blocks."""
    parts = layer.split(".")
    return [part for part in parts if not part.isdigit()], [int(part) for part in parts if part.isdigit()]


def loss_by_position(texts: Sequence[tuple[int | None, str]]) -> Panel | None:
    """The held-out loss over the tokens of context, at the last validation and at some before; None without any.

    Of a mix it is that of each source at the last validation.

    Args:
        texts: (step, text) as `CausalLM` noted them after validations.
    """
    found = {step: json.loads(text)["sources"] for step, text in texts if step is not None}
    if not found:
        return None
    last = max(found)
    if len(found[last]) > 1:
        bands = [_by_position(f"{name}, step {last}", rows) for name, rows in found[last].items() if rows]
    else:
        steps = sorted(found)
        shown = sorted({steps[round(i * (len(steps) - 1) / (COURSES - 1))] for i in range(COURSES)}, reverse=True)
        bands = [_by_position(f"step {step}", rows) for step in shown for rows in found[step].values()]
    title = "Held-out loss by position in the context"
    xlabel = "tokens of context that the model sees"
    return Panel(title, xlabel, "loss (nats per token)", bands, whole=True, x_logarithmic=True) if bands else None


def _by_position(label: str, rows: Sequence[Mapping[str, Any]]) -> Band:
    x = np.array([math.sqrt((row["first"] + 1) * (row["last"] + 1)) for row in rows])
    loss = np.array([row["loss"] for row in rows], dtype=np.float64)
    mean = float(np.average(loss, weights=[row["tokens"] for row in rows]))
    return Band(label, 1, x, loss, loss, loss, mean)
