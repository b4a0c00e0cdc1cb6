"""What a kind of experiment is given beside its definition, and what it comes to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrtrain.studies.compare.panels import Panel
from lrtrain.studies.experiments.verdict import Finding


@dataclass(frozen=True)
class Effort:
    """Where the runs are, how many are trained at a time, the threads of each, and the experiment's own folder."""

    runs: Path
    jobs: int
    threads: int
    folder: Path


@dataclass(frozen=True)
class Result:
    """What an experiment comes to.

    Attributes:
        table: As text; empty where it has been printed.
        verdict: In a line.
        found: The numbers, by the keys that `results.json` has.
        findings: Of the checks.
        panels: Of the figure.
        notes: Lines after the table.
    """

    table: str
    verdict: str
    found: dict[str, Any]
    findings: Sequence[Finding] = ()
    panels: Sequence[Panel] = ()
    notes: Sequence[str] = ()
