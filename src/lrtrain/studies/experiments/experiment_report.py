"""What an experiment of any kind is given beside its definition, and what it ends with: tables and numbers."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lrtrain.runtime.files import write_atomically, writing
from lrtrain.runtime.table import table
from lrtrain.runtime.units import short
from lrtrain.studies.compare.comparison import spread
from lrtrain.studies.compare.groups import Group
from lrtrain.studies.experiments.definition import LOSS, Definition
from lrtrain.studies.experiments.records import value
from lrtrain.studies.experiments.variant_runs import Trained, VariantRuns
from lrtrain.studies.experiments.verdict import Finding
from lrtrain.studies.jobs.job import Resources
from lrtrain.studies.pages.drawn import Panel


@dataclass(frozen=True)
class Effort(Resources):
    """What an experiment may use, and its own folder."""

    folder: Path = field(kw_only=True)


@dataclass(frozen=True)
class Result:
    """What an experiment comes to.

    Attributes:
        table: As text; empty where it has been printed.
        verdict: In a line.
        found: The numbers, by the keys that `results.json` has.
        findings: Of the checks.
        panels: Of the figure; None leaves a place of it empty.
        notes: Lines after the table.
        columns: Of the figure.
        groups: The runs behind the table, by variant, for a page that compares them.
    """

    table: str
    verdict: str
    found: dict[str, Any]
    findings: Sequence[Finding] = ()
    panels: Sequence[Panel | None] = ()
    notes: Sequence[str] = ()
    columns: int = 2
    groups: Sequence[Group] = ()


def heading(definition: Definition) -> str:
    """Title, and claim and source where there are any."""
    scale = f" ({definition.scale.name})" if definition.scale.name else ""
    title = f"{definition.name}{scale}: {definition.title}" if definition.title else f"{definition.name}{scale}"
    source = f" ({definition.source})" if definition.source else ""
    return f"{title}\nclaim: {definition.claim}{source}" if definition.claim else title


def plan_table(planned: Sequence[VariantRuns]) -> str:
    """What each variant takes."""
    rows = [["variant", "parameters", "FLOPs a token", "tokens a step", "steps", "tokens", "FLOPs of a run"]]
    for runs in planned:
        cost = runs.cost
        tokens = cost.tokens * cost.steps
        cells = (f"{cost.parameters:,}", short(cost.flops), f"{cost.tokens:,}", f"{cost.steps:,}", f"{tokens:,}")
        rows.append([runs.variant.label, *cells, f"{tokens * cost.flops:.3g}"])
    return table(rows)


def result_table(definition: Definition, trained: Sequence[Trained]) -> str:
    """A line a variant: the best learning rate, of how many, loss and what the checks look at.

    Those are mean ± sample standard deviation over the seeds.
    """
    looked = _looked_at(definition)
    searches = any(runs.variant.search for runs, _ in trained)
    others = [f"{statistic} {metric.removeprefix('spectral/').lstrip('*.')}" for metric, statistic in looked[1:]]
    published = any(runs.variant.published for runs, _ in trained)
    heads = ["variant", "lr", *(["of rates"] if searches else []), "runs", "steps", LOSS, *others]
    rows = [[*heads, *(["paper"] if published else [])]]
    for runs, best in trained:
        cells = [_cell([value(outcome, *what) for outcome in best.results]) for what in looked]
        rates = [str(len(best.rates))] if searches else []
        taken = (f"{best.lr:g}", *rates, str(len(best.results)), str(runs.cost.steps))
        rows.append([runs.variant.label, *taken, *cells, *([runs.variant.published] if published else [])])
    return "\n".join([table(rows), *unfinished(trained)])


def unfinished(trained: Sequence[Trained]) -> list[str]:
    """A line for each run over the seeds that diverged or failed, and one a search that met any."""
    lines = []
    for runs, best in trained:
        label = runs.variant.label
        lines += [
            f"{label}, lr {best.lr:g}, seed {seed}: {outcome.status}: {outcome.reason}"
            for seed, outcome in enumerate(best.results)
            if outcome.status != "finished"
        ]
        if best.at_end:
            lines.append(f"{label}: {best.at_end}")
        lost = [f"{lr:g}" for lr, loss in sorted(best.rates.items()) if math.isinf(loss)]
        if lost and len(lost) < len(best.rates):
            lines.append(f"{label}: no loss at lr {', '.join(lost)} in the search")
    return lines


def variants_as_data(definition: Definition, trained: Sequence[Trained]) -> list[dict[str, Any]]:
    """The numbers behind the table, for JSON."""
    looked = _looked_at(definition)
    return [
        {
            "variant": runs.variant.name,
            "label": runs.variant.label,
            "runs": runs.name,
            **asdict(runs.cost),
            "published": runs.variant.published,
            "searched": {f"{lr:g}": loss for lr, loss in sorted(best.rates.items())},
            "lr": best.lr,
            "seeds": [
                {
                    "status": outcome.status,
                    "reason": outcome.reason,
                    "run": None if outcome.run_dir is None else f"{outcome.run_dir.parent.name}/{outcome.run_dir.name}",
                    "seconds": outcome.seconds,
                    **{f"{statistic} {metric}": value(outcome, metric, statistic) for metric, statistic in looked},
                }
                for outcome in best.results
            ],
        }
        for runs, best in trained
    ]


def write_results(definition: Definition, result: Result, folder: Path) -> None:
    """Writes `results.json`, numbers that are none as null.

    Raises:
        UserError: the folder cannot be written.
    """
    content = {
        "experiment": definition.name,
        "scale": definition.scale.name,
        **{key: getattr(definition, key) for key in ("title", "claim", "source", "published")},
        "time": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        **result.found,
        "findings": [asdict(finding) for finding in result.findings],
        "verdict": result.verdict,
    }
    with writing(f"cannot write into {folder}", "set --runs to another folder"):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_finite(content), indent=2, allow_nan=False, ensure_ascii=False, default=str)
        write_atomically(folder / "results.json", (text + "\n").encode())


def _looked_at(definition: Definition) -> list[tuple[str, str]]:
    """Metrics and their statistics: the loss at the end, then what the checks compare."""
    return list(dict.fromkeys([(LOSS, "last"), *((check.metric, check.statistic) for check in definition.checks)]))


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if any(math.isinf(value) for value in known):
        return "diverged"
    return spread(known) if known else "–"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
