"""The page of a run, made from its own record: no tracker, no checkpoint and no data has to be there."""

import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.units import duration, short
from lrtrain.studies.compare.comparison import figure
from lrtrain.studies.compare.groups import Group
from lrtrain.studies.compare.panels import share_of_time, spectral_panels, with_unit
from lrtrain.studies.pages.document import Document
from lrtrain.studies.pages.drawn import Shares
from lrtrain.studies.report.provenance_parts import add_checkpoints, add_configuration, add_data, add_machine
from lrtrain.studies.report.run_figures import choice, heatmaps, together
from lrtrain.studies.report.written_parts import add_held_out, add_samples
from lrtrain.tracking.recorded import recorded, recorded_texts
from lrtrain.tracking.runs import TrackedRun

REPORT = "report.html"
"""Its name in the run directory."""

SHOWN = re.compile(r"train/|lr/|spectral/|throughput/|val/|step$|epoch")


def write_report(run_dir: Path, out: Path | None = None, ended: bool = False) -> Path:
    """Writes the page of a run and returns where: `report.html` in the run directory if `out` is None.

    Args:
        run_dir: The run directory.
        out: The file.
        ended: The run has come to its end, though its record does not say so yet.

    Raises:
        UserError: the directory has no record, or a damaged one; the file cannot be written.
    """
    run = recorded(run_dir)
    if run is None:
        raise UserError(f"{run_dir} holds no record of a run: name a run directory of lrtrain fit")
    texts = recorded_texts(run_dir)
    out = out or run_dir / REPORT
    status = "FINISHED" if ended and run.status == "RUNNING" else run.status
    page = Document()
    page.add(_facts(run, status))
    if status != "FINISHED":
        page.missing(f"The run's record says {status or 'nothing of its end'}: it has not come to its end.")
    _add_course(page, run)
    _add_spectra(page, run)
    add_held_out(page, run, texts)
    add_samples(page, texts)
    add_configuration(page, texts)
    add_data(page, texts)
    add_machine(page, texts)
    add_checkpoints(page, run_dir)
    began, ended_at = (datetime.fromtimestamp(time / 1000, UTC) for time in (run.start, run.end or run.start))
    subtitle = f"{began:%Y-%m-%d %H:%M} to {ended_at:%Y-%m-%d %H:%M} UTC · {run_dir} · lrtrain report"
    page.write(f"Run {run.run_name}", subtitle, out, f"cannot write {out}")
    return out


def _facts(run: TrackedRun, status: str) -> str:
    """The figures that one asks for first, each with what it is."""
    steps = max((int(series.step[-1]) for series in run.metrics.values() if len(series.step)), default=0)
    facts = [
        (status.lower() or "not recorded", "status"),
        (f"{steps:,}", f"last recorded step, max_steps {run.params.get('trainer.max_steps', '?')}"),
    ]
    for metric in ("val/loss", "val/perplexity", "val/bits_per_byte"):
        if metric in run.metrics:
            series = run.metrics[metric]
            facts.append((figure(run.last[metric]), f"{with_unit(metric)}, step {series.step[-1]}"))
    if "val/loss" in run.metrics and np.isfinite(run.metrics["val/loss"].value).any():
        series = run.metrics["val/loss"]
        lowest = int(np.nanargmin(series.value))
        facts.append((figure(float(series.value[lowest])), f"lowest val/loss, step {series.step[lowest]}"))
    if "throughput/tokens_seen" in run.last:
        facts.append((short(run.last["throughput/tokens_seen"]), "tokens trained on"))
    if "throughput/flops" in run.last:
        facts.append((short(run.last["throughput/flops"]), "FLOPs, forward and backward"))
    if seconds := run.last.get("throughput/seconds"):
        facts.append((duration(seconds), "in training, without validation"))
        if "throughput/tokens_seen" in run.last:
            facts.append((f"{run.last['throughput/tokens_seen'] / seconds:,.0f}", "tokens a second, over all of it"))
    cells = "".join(f"<div><b>{value}</b><span>{what}</span></div>" for value, what in facts)
    return f'<div class="facts">{cells}</div>'


def _add_course(page: Document, run: TrackedRun) -> None:
    page.section(
        "Course",
        "The pointer, or a tap, reads values; curves of many points are averaged over neighboring ones. A click on a "
        "name hides its line.",
    )
    loss = together("Loss", "loss (nats per token)", run, {"train/loss": "train/loss", "val/loss": "val/loss"})
    rates = {key.removeprefix("lr/"): key for key in run.metrics if key.startswith("lr/")}
    speed = ["throughput/tokens_per_second", "throughput/mfu"]
    others = [key for key in run.metrics if not SHOWN.match(key)]
    held_out = ["val/bits_per_byte", "val/perplexity", *(key for key in run.metrics if key.startswith("epoch"))]
    found = {
        "loss": loss,
        "throughput": choice("Throughput", run, speed),
        "learning rates": together("Learning rates", "learning rate", run, rates, whole=True),
        "gradient norm": choice("Gradient norm, before clipping", run, ["train/gradient_norm"]),
        "other metrics": choice("Other metrics", run, [*held_out, *others]),
    }
    page.figures([one for one in found.values() if one is not None])
    for name, one in found.items():
        if one is None and name != "other metrics":
            page.missing(f"No {name}: the run logged none.")
    shares = share_of_time([Group(run.run_name, [run])])
    if isinstance(shares, Shares):
        page.figures([shares])
    else:
        page.missing(f"{shares[0].upper()}{shares[1:]}.")


def _add_spectra(page: Document, run: TrackedRun) -> None:
    page.section(
        "Spectra of the layers",
        "What an optimizer step does to the projections that SpectralTelemetry measures: a row a layer, from the first "
        "measured step at the left to the last at the right; each row of colors has the scale below its figure.",
    )
    first, others = heatmaps(run)
    largest = [panel for panel in spectral_panels([Group("largest of the layers", [run])]) if "largest" in panel.title]
    if not first and not others:
        page.missing(
            "No spectra: the run recorded no telemetry (SpectralTelemetry's every_n_steps is 0 or above the run's "
            "length, or it has none)."
        )
        page.figures(largest)
        return
    page.figures([*first, *largest])
    if not any(one.title.startswith("max |X") for one in first):
        page.missing("No orthogonality: no measured layer has columns that are kept orthonormal.")
    if others:
        with page.folded(f"{len(others)} more figures of the layers"):
            page.figures(others)
