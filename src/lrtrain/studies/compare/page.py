"""The page of a comparison: table, figures with a choice of axes, best learning rates, what differs, the runs."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from lrtrain.studies.compare.comparison import Table, figure
from lrtrain.studies.compare.groups import Group, differing
from lrtrain.studies.compare.panels import metric_panels, other_panels
from lrtrain.studies.compare.rates_table import best_rates
from lrtrain.studies.pages.document import Document, bullets, table
from lrtrain.studies.pages.drawn import Choice, Panel

BESIDE = ("val/loss", "train/loss", "train/gradient_norm", "throughput/tokens_per_second")
"""Metrics that the page can show in place of the one that is compared."""


def write_page(
    groups: Sequence[Group], metric: str, result: Table, warnings: Sequence[str], command: str, out: Path
) -> None:
    """Writes the page.

    Args:
        groups: What is compared.
        metric: The metric of the tables.
        result: The first table.
        warnings: What is to be minded, a line each.
        command: The command line that made the page.
        out: The file.

    Raises:
        UserError: the file cannot be written.
    """
    curves, no_axes = _curves(groups, metric)
    panels, missing = other_panels(groups)
    page = Document()
    page.section(
        "Result",
        "Mean ± sample standard deviation over the runs of a name. Columns “at …” are taken at the last point that all "
        "runs have reached, between logged points by interpolation. A click on a heading sorts.",
    )
    page.add(table(result.header, result.rows, "sortable"))
    page.add(bullets([*warnings, *no_axes, *missing]))
    page.section(
        "Figures",
        "Lines are means over the runs of a name, bands reach from the lowest to the highest run; runs with many "
        "points are averaged over neighboring ones. The pointer, or a tap, reads values; a click on a name hides its "
        "line.",
    )
    choice = [Choice("Curves", {y: dict(axes) for y, axes in curves.items()})] if curves else []
    page.figures([*choice, *panels])
    page.section("Best learning rates", "Runs that differ in seeds and learning rates alone are one method.")
    header, rows = best_rates(groups, metric)
    page.add(
        table(header, rows, "text sortable") if rows else "<p>No run has a learning rate in its configuration.</p>"
    )
    page.section("Configuration: what differs", "Keys of the command line whose values are not the same in all names.")
    page.add(_differences(groups))
    page.section("Runs")
    page.add(_runs(groups, metric))
    page.section("Made by")
    page.add(f"<pre>{escape(command)}</pre>")
    named = ", ".join(group.label for group in groups) if len(groups) <= 4 else f"{len(groups)} names"
    count = sum(len(group.runs) for group in groups)
    subtitle = f"{count} finished runs, {len(groups)} names · {datetime.now(UTC):%Y-%m-%d %H:%M} UTC · lrtrain"
    page.write(f"{metric} of {named}", subtitle, out, f"cannot write {out}")


def _curves(groups: Sequence[Group], metric: str) -> tuple[dict[str, dict[str, Panel]], list[str]]:
    """The panels of the metric, and of those beside it that all runs have, over every axis; what there is not.

    What is a single point in every run, as of a loss that is validated at the end alone, comes last.
    """
    of_metric, missing = metric_panels(groups, metric)
    everywhere = set.intersection(*({*run.metrics} for group in groups for run in group.runs))
    others = [one for one in BESIDE if one != metric and one in everywhere]
    found = {metric: of_metric, **{one: metric_panels(groups, one)[0] for one in others}}
    first = sorted((name for name, panels in found.items() if panels), key=lambda name: _single(found[name]))
    return {name: found[name] for name in first}, missing


def _single(panels: Mapping[str, Panel]) -> bool:
    return all(len(band.x) < 2 for panel in panels.values() for band in panel.bands)


def _differences(groups: Sequence[Group]) -> str:
    found = differing(groups)
    if not found:
        return "<p>No key of the configuration differs between the names.</p>"
    rows = [[key, *of_key] for key, of_key in found.items()]
    return table(["key", *(group.label for group in groups)], rows, "text keys sortable")


def _runs(groups: Sequence[Group], metric: str) -> str:
    header = ["run", "name", "seed", "last value", "began (UTC)", "commit", "lrtrain", "torch", "hardware"]
    rows = []
    for group in groups:
        for run in group.runs:
            commit = run.tags.get("git.commit", "null")
            known = commit[:10] + (", with changes" if run.tags.get("git.dirty") == "true" else "")
            row = [
                run.run_name,
                group.label,
                run.params.get("seed_everything", "–"),
                figure(run.last[metric]),
                f"{datetime.fromtimestamp(run.start / 1000, UTC):%Y-%m-%d %H:%M}",
                "not recorded" if commit == "null" else known,
                run.tags.get("versions.lrtrain", "–"),
                run.tags.get("versions.torch", "–"),
                f"{run.tags.get('hardware.cpu', '–')}, {run.tags.get('hardware.cores', '?')} cores",
            ]
            rows.append(row)
    return table(header, rows, "text sortable")
