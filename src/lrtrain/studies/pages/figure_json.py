"""Figures as the JSON that the page's scripts draw: numbers in few digits, what is not finite as null."""

from typing import Any

import numpy as np

from lrtrain.studies.pages.drawn import Band, Choice, Heatmap, Panel

COLUMNS = 240
"""Steps of a heatmap at most: of more, neighbors are averaged."""


def as_json(figure: Choice | Panel | Heatmap) -> dict[str, Any]:
    """What `charts.js` or `heatmaps.js` takes."""
    if isinstance(figure, Heatmap):
        return _heatmap(figure)
    panels = figure.panels if isinstance(figure, Choice) else {figure.ylabel: {figure.xlabel: figure}}
    return {"kind": "chart", "panels": {y: {x: _panel(one) for x, one in axes.items()} for y, axes in panels.items()}}


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "xlabel": panel.xlabel,
        "ylabel": panel.ylabel,
        "logarithmic": panel.logarithmic,
        "x_logarithmic": panel.x_logarithmic,
        "bound": panel.bound,
        "whole": panel.whole,
        "bands": [
            {
                "label": band.label,
                "runs": band.runs,
                "last": numbers(np.array([band.last]))[0],
                "x": numbers(band.x, digits=8),
                "mean": numbers(band.mean),
                **_range(band),
            }
            for band in panel.bands
        ],
    }


def _range(band: Band) -> dict[str, list[float | None]]:
    """Where runs or layers differ, how far."""
    if np.array_equal(band.low, band.high, equal_nan=True):
        return {}
    return {"low": numbers(band.low), "high": numbers(band.high)}


def _heatmap(figure: Heatmap) -> dict[str, Any]:
    steps, values = figure.steps, figure.values
    if len(steps) > COLUMNS:
        parts = np.array_split(np.arange(len(steps)), COLUMNS)
        steps = np.array([steps[part[-1]] for part in parts])
        values = np.stack([_mean(values[:, part]) for part in parts], axis=1)
    rows = [{"label": label, "values": numbers(row)} for label, row in zip(figure.layers, values, strict=True)]
    return {"kind": "heatmap", "logarithmic": figure.logarithmic, "steps": steps.tolist(), "rows": rows}


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over columns of what is finite; NaN where nothing is."""
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(axis=1)
    mean: np.ndarray = np.where(known.any(axis=1), total / np.maximum(known.sum(axis=1), 1), np.nan)
    return mean


def numbers(values: np.ndarray, digits: int = 5) -> list[float | None]:
    """Values in so many significant digits; null for what is not finite."""
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values.tolist()]
