"""What there is to draw of some groups of runs: curves of the metric, spectral norms, shares of time."""

from collections.abc import Sequence

import numpy as np

from lrtrain.studies.compare.curves import AXES, NAMES, Curve, band, curve, curves_of, some
from lrtrain.studies.compare.groups import Group
from lrtrain.studies.pages.drawn import Band, Panel, Shares

UNITS = {
    "loss": "nats per token",
    "bits_per_byte": "bits per byte of text",
    "tokens_per_second": "tokens per second",
    "seconds": "s",
}

SPECTRAL = {
    "sigma_A": "‖A‖₂",
    "sigma_B": "‖B‖₂",
    "update_over_lr": "‖ΔW‖₂ / learning rate",
    "orthonormality_error": "max |XᵀX − I|",
    "update_norm": "‖ΔW‖₂",
    "weight_norm": "‖W‖₂",
    "update_over_weight": "‖ΔW‖ / ‖W‖ (Frobenius)",
    "output_change_rms": "RMS of ΔW x on the probe",
    "effective_rank": "effective rank of W",
    "stable_rank": "stable rank of W",
    "dead_directions": "dead directions (share)",
}
"""The telemetry's figures, `spectral/<layer>/<figure>`; of some the largest is logged too, as `spectral/<figure>`."""

LOGARITHMIC = ("orthonormality_error", "update_norm", "update_over_weight", "output_change_rms")

TIMES = ("throughput/seconds", "throughput/step_seconds", "throughput/validation_seconds")


def metric_panel(groups: Sequence[Group], metric: str, axis: str) -> Panel | str:
    """Returns the panel of the metric over an axis, or a line that says why there is none.

    Raises:
        UserError: a run has no such metric.
    """
    curves = curves_of(groups, metric, axis)
    if isinstance(curves, str):
        return f"no {metric} over {NAMES[axis]}: {curves}"
    divisor, xlabel = axis_scale(axis, max(c.x[-1] for of_group in curves for c in of_group))
    bands = []
    for group, of_group in zip(groups, curves, strict=True):
        of_label = band(group.label, len(of_group), [Curve(c.x / divisor, c.y) for c in of_group])
        if of_label is None:
            return f"no {metric} over {NAMES[axis]}: the runs of {group.label} have no stretch of it in common"
        bands.append(of_label)
    return Panel(f"{metric} over {NAMES[axis]}", xlabel, with_unit(metric), bands)


def with_unit(metric: str) -> str:
    """`val/loss (nats per token)`."""
    return metric + next((f" ({unit})" for ending, unit in UNITS.items() if metric.endswith(ending)), "")


def spectral_panels(groups: Sequence[Group]) -> list[Panel]:
    """The largest norms over the measured layers; what else is logged of each layer, as mean and range over them."""
    logged = {key for group in groups for run in group.runs for key in run.metrics}
    panels = []
    for name, symbol in SPECTRAL.items():
        layers = sorted(key for key in logged if key.endswith(f"/{name}") and key != f"spectral/{name}")
        title, bound = f"{symbol}, mean and range of {len(layers)} layers", None
        if f"spectral/{name}" in logged:
            title, layers = f"{symbol}, largest of the layers", [f"spectral/{name}"]
            bound = 1.0 if name == "update_over_lr" else None
        if bands := [b for group in groups if (b := _band(group, layers))]:
            panels.append(Panel(title, "optimizer step", symbol, bands, name in LOGARITHMIC, bound))
    return panels


def share_of_time(groups: Sequence[Group]) -> Shares | str:
    """Returns the shares of steps, what is between them, and validation in the time; or a line that says why not."""
    missing = [run.run_name for group in groups for run in group.runs if not set(TIMES) <= run.last.keys()]
    if missing:
        return f"no share of time: {some(missing)} logged no {TIMES[1]}"
    shares = []
    for group in groups:
        total, step, validation = np.array([[run.last[name] for name in TIMES] for run in group.runs]).T
        parts = np.array([step, total - step, validation]) / (total + validation)
        shares.append(100 * parts.mean(axis=1))
    names = ("training step", "between steps (data, logging, checkpoints)", "validation")
    of_part = dict(zip(names, np.array(shares).T.tolist(), strict=True))
    return Shares("Share of time", [group.label for group in groups], of_part)


def metric_panels(groups: Sequence[Group], metric: str) -> tuple[dict[str, Panel], list[str]]:
    """The panels of the metric by the name of their axis, and a line for each axis over which there is none."""
    found = {NAMES[axis]: metric_panel(groups, metric, axis) for axis in AXES}
    panels = {name: panel for name, panel in found.items() if not isinstance(panel, str)}
    return panels, [reason for reason in found.values() if isinstance(reason, str)]


def other_panels(groups: Sequence[Group]) -> tuple[list[Panel | Shares], list[str]]:
    """What there is to draw beside metrics, and a line for each thing that there is not."""
    panels: list[Panel | Shares] = [*spectral_panels(groups)]
    shares = share_of_time(groups)
    return ([*panels, shares], []) if isinstance(shares, Shares) else (panels, [shares])


def all_panels(groups: Sequence[Group], metric: str) -> tuple[list[Panel | Shares], list[str]]:
    """Everything there is to draw, and a line for each thing that there is not."""
    (of_metric, no_axes), (others, missing) = metric_panels(groups, metric), other_panels(groups)
    return [*of_metric.values(), *others], [*no_axes, *missing]


def _band(group: Group, metrics: Sequence[str]) -> Band | None:
    curves = [curve(run, metric, "steps") for run in group.runs for metric in metrics if metric in run.metrics]
    known = [c for c in curves if c is not None]
    return band(group.label, len(group.runs), known) if known else None


def axis_scale(axis: str, most: float) -> tuple[float, str]:
    """What to divide an axis by, and its label, so that its numbers are short."""
    if axis == "steps":
        return 1.0, "optimizer step"
    if axis == "time":
        unit, size = ("hours", 3600.0) if most >= 7200 else ("minutes", 60.0) if most >= 120 else ("seconds", 1.0)
        return size, f"time in training, without validation ({unit})"
    power = max(0, 3 * int(np.log10(max(most, 1)) // 3))
    if axis == "tokens" and power <= 12:
        word = {0: "", 3: " (thousands)", 6: " (millions)", 9: " (billions)", 12: " (trillions)"}[power]
        return 10.0**power, f"training tokens{word}"
    digits = str(power).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return 10.0**power, f"training {'tokens' if axis == 'tokens' else 'FLOPs, forward and backward'} (10{digits})"
