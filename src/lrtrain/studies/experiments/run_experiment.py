"""Planning and running an experiment of any kind."""

import importlib
from pathlib import Path
from typing import Any

from lrtrain.studies.experiments.definition import Definition
from lrtrain.studies.experiments.experiment_report import write_results
from lrtrain.studies.experiments.result import Effort, Result

MODULES = {
    "training": "trained_variants",
    "isoflop": "isoflop_experiment",
    "memory": "measured_memory",
    "conversion": "converted_models",
}
"""Kind -> the module whose `plan` and `run` it is; each imports what it needs."""

FIGURE = "figure.png"


def plan(definition: Definition) -> str:
    """What an experiment takes, as text. Raises UserError for what the configuration does not take."""
    return str(_module(definition).plan(definition))


def run(definition: Definition, runs: Path, jobs: int, threads: int) -> str:
    """Runs an experiment, prints its table and verdict, writes its figure and numbers, and returns the verdict.

    Args:
        definition: What is run.
        runs: Folder of the runs; its own is `<runs>/experiments/<name>-<scale>`.
        jobs: Runs trained at a time.
        threads: Of a run.

    Raises:
        UserError: a run is refused for its configuration, or a folder cannot be written.
    """
    folder = runs / "experiments" / definition.place
    result: Result = _module(definition).run(definition, Effort(runs, jobs, threads, folder))
    if result.table:
        print(f"\n{result.table}")
    write_results(definition, result, folder)
    if result.panels:
        from lrtrain.studies.compare.figure import picture

        labels = dict.fromkeys(band.label for panel in result.panels for band in panel.bands)
        picture(result.panels, list(labels), folder / FIGURE)
    print("\n".join([*result.notes, f"verdict: {result.verdict}", f"wrote {folder}"]), flush=True)
    return result.verdict


def _module(definition: Definition) -> Any:
    return importlib.import_module(f"lrtrain.studies.experiments.{MODULES[definition.kind]}")
