"""The usual experiment: each variant trained at its best learning rate over seeds, then judged."""

from collections.abc import Sequence
from functools import partial

from lrtrain.runtime.errors import UserError
from lrtrain.studies.experiments.definition import LOSS, Definition
from lrtrain.studies.experiments.experiment_figure import finished_groups, panels
from lrtrain.studies.experiments.experiment_report import (
    Effort,
    Result,
    plan_table,
    result_table,
    variants_as_data,
)
from lrtrain.studies.experiments.records import value
from lrtrain.studies.experiments.variant_runs import Trained, VariantRuns, variant_runs
from lrtrain.studies.experiments.verdict import compared, judge, overall, p_table
from lrtrain.studies.jobs.best_rate import Repeated, train_best
from lrtrain.studies.jobs.job import Job, Outcome
from lrtrain.studies.jobs.shared_records import trained_elsewhere


def plan(definition: Definition) -> str:
    """What each variant takes, as a table. Raises UserError for what the configuration does not take."""
    return plan_table(variant_runs(definition))


def run(definition: Definition, effort: Effort) -> Result:
    """Trains the variants and judges them.

    Raises:
        UserError: `lrtrain fit` refuses a run for its configuration.
    """
    trained = train(checked_runs(definition), definition.scale.seeds, effort)
    outcomes = {runs.variant.name: best.results for runs, best in trained}
    labels = {variant.name: variant.label for variant in definition.variants}

    def measure(name: str, metric: str, statistic: str) -> list[float | None]:
        return [value(outcome, metric, statistic) for outcome in outcomes[name]]

    found = {"variants": variants_as_data(definition, trained)}
    groups = finished_groups(trained)
    drawn, notes = panels(definition, groups, trained)
    if not definition.checks:
        verdict, pairs = compared({labels[name]: measure(name, LOSS, "last") for name in outcomes})
        verdict = "; ".join(filter(None, [verdict, definition.scale.differs]))
        notes = [*notes, p_table(pairs)] if len(pairs) > 2 else notes
        table, data = result_table(definition, trained), {**found, "p": pairs}
        return Result(table, verdict, data, (), drawn, notes, groups=groups)
    findings = [judge(check, measure, labels, definition.claimed) for check in definition.checks]
    _, verdict = overall(findings, definition.scale.differs, bool(definition.source))
    notes += [f"beyond the paper: {finding.outcome}: {finding.text}" for finding in findings if finding.ours]
    return Result(result_table(definition, trained), verdict, found, findings, drawn, notes, groups=groups)


def checked_runs(definition: Definition) -> list[VariantRuns]:
    """The variants' runs, once every configuration is known to be one that `fit` takes; prints what they take."""
    return checked(definition.name, variant_runs(definition))


def checked(name: str, planned: list[VariantRuns]) -> list[VariantRuns]:
    """The runs of the experiment `name`, as `checked_runs` gives those of variants."""
    from lrtrain.config.train_parser import resolve_config

    for runs in planned:
        try:
            resolve_config(runs.configs, runs.configuration(runs.variant.lr, 0))
        except UserError as error:
            raise UserError(f"{name}: {runs.variant.name}: {error}") from error
    print(plan_table(planned), flush=True)
    return planned


def train(planned: Sequence[VariantRuns], seeds: int, effort: Effort, keep_checkpoints: bool = False) -> list[Trained]:
    """Trains variants, each at its best learning rate over seeds; prints a line a run."""
    wanted = [
        Repeated(
            partial(one.job, resources=effort),
            one.variant.lr,
            range(seeds),
            one.variant.search,
            one.variant.factors,
        )
        for one in planned
    ]
    return list(zip(planned, train_best(wanted, effort.jobs, keep_checkpoints, each=tell), strict=True))


def tell(job: Job, outcome: Outcome) -> None:
    """Prints a line on a run that has ended."""
    said = f"loss {outcome.metric:.4f}" if outcome.status == "finished" else f"{outcome.status}: {outcome.reason}"
    where = trained_elsewhere(job, outcome)
    print(f"{job.name}: {said}{f' (trained elsewhere: {where})' if where else ''}", flush=True)
