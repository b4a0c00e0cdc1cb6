"""Jobs at every learning rate of a grid, over seeds."""

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.long_work import telling
from lrtrain.studies.jobs.best_rate import Repeated, rates_of
from lrtrain.studies.jobs.job import Job, Outcome
from lrtrain.studies.jobs.launch import run_job
from lrtrain.studies.jobs.processes import workers
from lrtrain.studies.jobs.under_way import UnderWay

FURTHER = 4
"""How many rates are tried beyond a grid whose best lies at an end."""


def train_rates(
    wanted: Sequence[Repeated], parallel: int = 1, each: Callable[[Job, Outcome], object] = lambda job, outcome: None
) -> list[dict[float, list[Outcome]]]:
    """Trains each at all rates of its grid, `parallel` runs at a time; what has finished is not repeated.

    A grid whose best rate lies at an end goes on there, at the ratio of its last two rates. Of what is not searched
    there is the first rate alone. A line a minute on stderr tells how far that is.

    Returns:
        For each of `wanted`: learning rate -> what came of it, one a seed.

    Raises:
        UserError: as of `run_job`; a run at the first rate is refused for its configuration.
    """

    def run(of: Repeated, lr: float, seed: int) -> Outcome:
        job = of.job(lr, seed)
        outcome = under_way.run(job, partial(run_job, job))
        if outcome.refused and lr == of.start:
            raise UserError(f"{job.name}: {outcome.reason}")
        each(job, outcome)
        return outcome

    found: list[dict[float, list[Outcome]]] = [{} for _ in wanted]
    due = [rates_of(of.start, of.factors if of.search else [1]) for of in wanted]
    planned = [len(rates) for rates in due]
    under_way, done = UnderWay("runs", 0), 0
    with telling(under_way.line), workers(parallel) as pool:
        while any(due):
            pairs = [(index, lr) for index, rates in enumerate(due) for lr in rates]
            runs = [(index, lr, seed) for index, lr in pairs for seed in wanted[index].seeds]
            under_way.total += len(runs)
            outcomes = pool.map(lambda one: run(wanted[one[0]], *one[1:]), runs)
            for (index, lr, _), outcome in zip(runs, outcomes, strict=True):
                found[index].setdefault(lr, []).append(outcome)
                done += 1
                under_way.done(done)
            due = [
                _beyond(losses_of(own)) if of.search and len(own) < many + FURTHER else []
                for of, own, many in zip(wanted, found, planned, strict=True)
            ]
    return found


def losses_of(outcomes: dict[float, list[Outcome]]) -> dict[float, float]:
    """Learning rate -> mean loss over the seeds, infinite where a run diverged or failed."""
    return {
        lr: statistics.fmean(math.inf if one.metric is None else one.metric for one in of_seeds)
        for lr, of_seeds in outcomes.items()
    }


def _beyond(losses: dict[float, float]) -> list[float]:
    """The next rate where the best is the first or the last, and a quarter of the first where none gave a loss."""
    rates = sorted(losses)
    best = min(rates, key=lambda lr: losses[lr])
    if math.isinf(losses[best]):
        return rates_of(rates[0], [0.25])
    if len(rates) > 1 and best == rates[0]:
        return rates_of(rates[0], [rates[0] / rates[1]])
    if len(rates) > 1 and best == rates[-1]:
        return rates_of(rates[-1], [rates[-1] / rates[-2]])
    return []
