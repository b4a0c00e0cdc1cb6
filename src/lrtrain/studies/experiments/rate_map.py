"""The kind of experiment that trains every variant at every learning rate of a grid, at one size or at many."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from lrtrain.studies.experiments.definition import LOSS, Definition
from lrtrain.studies.experiments.experiment_report import Effort, Result, plan_table
from lrtrain.studies.experiments.rate_curves import Mapped
from lrtrain.studies.experiments.rate_figure import rate_panels
from lrtrain.studies.experiments.rate_optimum import optimum
from lrtrain.studies.experiments.rate_report import (
    looked_at,
    movement_table,
    rates_table,
    rates_verdict,
    unfinished_rates,
)
from lrtrain.studies.experiments.records import value
from lrtrain.studies.experiments.sized_variants import sized_variants
from lrtrain.studies.experiments.trained_variants import checked, tell
from lrtrain.studies.experiments.variant_runs import VariantRuns
from lrtrain.studies.jobs.best_rate import Repeated
from lrtrain.studies.jobs.job import Outcome
from lrtrain.studies.jobs.rate_grid import train_rates


def plan(definition: Definition) -> str:
    """What each variant takes at each size, and how many runs there are at least."""
    sized = sized_variants(definition)
    many = sum(len(one.all) * (len(one.variant.factors) if one.variant.search else 1) for one in sized)
    rows = plan_table([runs for one in sized for runs in one.all])
    return f"{rows}\n{many * definition.scale.seeds} runs, and more where the best learning rate is the last of a grid"


def run(definition: Definition, effort: Effort) -> Result:
    """Trains all, finds the best rates, and says how they move.

    Raises:
        UserError: `lrtrain fit` refuses a run for its configuration.
    """
    sized = sized_variants(definition)
    planned = checked(definition.name, [runs for one in sized for runs in one.all])
    first = definition.scale.options.first_seed
    wanted = [
        Repeated(
            partial(one.job, resources=effort),
            one.variant.lr,
            range(first, first + definition.scale.seeds),
            one.variant.search,
            one.variant.factors,
        )
        for one in planned
    ]
    curves = dict(zip((one.name for one in planned), train_rates(wanted, effort.jobs, tell), strict=True))
    mapped = [Mapped(one, {runs.name: curves[runs.name] for runs in one.all}) for one in sized]
    drawn, notes = rate_panels(definition, mapped)
    tables = ["\n".join([rates_table(definition, mapped), *unfinished_rates(mapped)])]
    axes = len(definition.scale.options.axes)
    if axes:
        tables.append(movement_table(definition, mapped))
    verdict = rates_verdict(definition, mapped)
    return Result("\n\n".join(tables), verdict, _data(definition, mapped), (), drawn, notes, axes if axes > 1 else 2)


def _data(definition: Definition, mapped: Sequence[Mapped]) -> dict[str, Any]:
    """The numbers behind table and figure, for JSON."""
    looked = [(LOSS, "last"), *looked_at(definition)]

    def point(outcome: Outcome) -> dict[str, Any]:
        values = {f"{statistic} {metric}": value(outcome, metric, statistic) for metric, statistic in looked}
        return {"status": outcome.status, "reason": outcome.reason, **values}

    def size(one: Mapped, runs: VariantRuns) -> dict[str, Any]:
        curve = {f"{lr:g}": [*map(point, of_seeds)] for lr, of_seeds in sorted(one.curves[runs.name].items())}
        found = {"label": runs.variant.label, "runs": runs.name, **asdict(runs.cost)}
        return {**found, "best": asdict(optimum(one.losses(runs))), "rates": curve}

    variants = [
        {
            "variant": one.sized.variant.name,
            "sizes": [size(one, runs) for runs in one.sized.all],
            "moves": {name: asdict(move) for name, move in one.movements().items()},
        }
        for one in mapped
    ]
    return {"variants": variants}
