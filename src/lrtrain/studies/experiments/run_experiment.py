"""Listing experiments, and planning and running one of any kind."""

import importlib
from collections.abc import Sequence
from typing import Any

from lrtrain.runtime.table import table
from lrtrain.studies.experiments.definition import LOSS, Definition, Variant
from lrtrain.studies.jobs.job import Resources

MODULES = {
    "training": "trained_variants",
    "rates": "rate_map",
    "isoflop": "isoflop_experiment",
    "memory": "measured_memory",
    "conversion": "converted_models",
}
"""Kind -> the module whose `plan` and `run` it is; each imports what it needs."""

SEARCHED = 4
"""Runs of a usual search: 3 where the first rate is the best, 5 two factors beside it."""

STARTUP = 10.0
"""Seconds of a run before its first step."""


def listing(found: Sequence[Definition]) -> str:
    """A line an experiment with its time, two runs at a time; the sum counts a run that several share once."""
    rows = [["experiment", "scale", "time", "claim"]]
    distinct: dict[str, float] = {}
    for one in found:
        own = {one.name: float(one.scale.besides)}
        run = (one.scale.seconds + STARTUP) / 2 / 60 if one.scale.seconds else 0.0
        for variant in one.variants:
            same = (variant.overlays, variant.settings, variant.equal_flops, one.scale.settings)
            own[str(same)] = _runs(one, variant) * run
            if one.kind == "conversion":
                own[f"{same} kept"] = one.scale.seeds * run
        total = f"{sum(own.values()):.0f} min" if any(own.values()) else ""
        rows.append([one.name, one.scale.name, total, one.claim or one.title])
        distinct |= own if one.source else {}
    whole = f"about {sum(distinct.values()):.0f} minutes on two quiet cores with --jobs 2"
    return f"{table(rows, numbers=False)}\n\nall of the papers', shared runs once: {whole}"


def _runs(definition: Definition, variant: Variant) -> int:
    """How many runs a variant takes, about, where its search has no end that is known."""
    seeds, grid = definition.scale.seeds, len(variant.factors) if variant.search else 1
    if definition.kind == "rates":
        axes = [axis for axis in definition.scale.options.axes if axis.name not in variant.without]
        return seeds * grid * (1 + sum(len(axis.sizes) - 1 for axis in axes))
    return seeds + (0 if not variant.search else len(variant.factors) or SEARCHED - 1)


def plan(definition: Definition) -> str:
    """What an experiment takes, as text. Raises UserError for what the configuration does not take."""
    return str(_module(definition).plan(definition))


def run(definition: Definition, resources: Resources, command: str) -> str:
    """Runs an experiment, prints its table and verdict, writes its figure, page and numbers, and returns the verdict.

    Args:
        definition: What is run.
        resources: What it may use; its own folder is `<runs>/experiments/<name>-<scale>`.
        command: The command line, for the page.

    Raises:
        UserError: a run is refused for its configuration, or a folder cannot be written.
    """
    from lrtrain.studies.experiments.experiment_report import Effort, Result, write_results

    folder = resources.runs / "experiments" / definition.place
    result: Result = _module(definition).run(definition, Effort(**vars(resources), folder=folder))
    if result.table:
        print(f"\n{result.table}")
    write_results(definition, result, folder)
    if result.panels:
        from lrtrain.studies.compare.figure import picture

        labels = dict.fromkeys(band.label for panel in result.panels if panel for band in panel.bands)
        own = definition.kind == "rates"
        picture(result.panels, None if own else list(labels), folder / "figure.png", result.columns)
    if result.groups:
        from lrtrain.studies.compare.comparison import compare
        from lrtrain.studies.compare.groups import check_data
        from lrtrain.studies.compare.page import write_page

        warnings = check_data(result.groups, anyway=True)
        print("".join(f"warning: {warning}\n" for warning in warnings), end="")
        write_page(result.groups, LOSS, compare(result.groups, LOSS), warnings, command, folder / "page.html")
    print("\n".join([*result.notes, f"verdict: {result.verdict}", f"wrote {folder}"]), flush=True)
    return result.verdict


def _module(definition: Definition) -> Any:
    return importlib.import_module(f"lrtrain.studies.experiments.{MODULES[definition.kind]}")
