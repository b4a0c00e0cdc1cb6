"""Jobs at their best learning rate over seeds: the search, and the training of many at once."""

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.long_work import telling
from lrtrain.studies.jobs.job import Job, Outcome
from lrtrain.studies.jobs.launch import run_job
from lrtrain.studies.jobs.processes import workers
from lrtrain.studies.jobs.under_way import UnderWay

AGAIN = 3
"""How often a search whose first value diverges begins anew, each time at a quarter of it."""

FURTHEST = 8
"""How many rates in a direction, a factor of 256, a search tries where the loss does not rise."""

SEARCH_SEED = 1000
"""With which a search over given factors runs, so that it chooses on no seed that is reported."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Repeated:
    """What is trained at its best learning rate over seeds.

    Attributes:
        job: Makes the job of a learning rate and a seed.
        start: The first rate of the search, or the only one; 0 where the job takes the recipe's.
        seeds: The first one searches, unless there are factors.
        search: Whether the rate is searched.
        factors: Of `start`, all of which a search tries, with the seed `SEARCH_SEED`.
    """

    job: Callable[[float, int], Job]
    start: float
    seeds: Sequence[int]
    search: bool = True
    factors: Sequence[float] = ()


@dataclass(frozen=True)
class Best(Generic[Result]):
    """What a search found.

    Attributes:
        rates: Learning rate -> loss with the seed of the search; infinite where it gave none.
        lr: The best of them.
        results: Of the runs at that rate, one a seed; that of the search alone where no rate of it gave a loss.
    """

    rates: dict[float, float]
    lr: float
    results: list[Result]

    @property
    def at_end(self) -> str:
        """What to say where the best of several rates is the last one tried in a direction, else empty."""
        end = {min(self.rates): "lowest", max(self.rates): "highest"}.get(self.lr)
        if end is None or len(self.rates) == 1 or math.isinf(self.rates[self.lr]):
            return ""
        return f"the best lr, {self.lr:g}, is the {end} of the {len(self.rates)} tried: its search needs others"


def train_best(
    wanted: Sequence[Repeated],
    parallel: int = 1,
    keep_checkpoints: bool = False,
    each: Callable[[Job, Outcome], object] = lambda job, outcome: None,
    done: Callable[[int, Best[Outcome]], object] = lambda index, best: None,
) -> list[Best[Outcome]]:
    """Trains them, `parallel` runs at a time; what has finished is not repeated. A refused rate ends its direction.
    A line a minute on stderr tells how far that is.

    Ctrl-C, SIGTERM and errors end the processes, which save first; the next call resumes them.

    Args:
        wanted: What to train.
        parallel: Processes at a time.
        keep_checkpoints: Of runs that have ended.
        each: Called, in any thread, as a run ends.
        done: Called as all runs of one of `wanted`, by its index, have ended.

    Raises:
        UserError: as of `run_job`; a run at the first rate is refused for its configuration.
    """

    under_way = UnderWay("searches and seeds" if any(of.search for of in wanted) else "settings", len(wanted))

    def run(of: Repeated, lr: float, seed: int) -> Outcome:
        job = of.job(lr, seed)
        outcome = under_way.run(job, partial(run_job, job, keep_checkpoints=keep_checkpoints))
        if outcome.refused and lr == of.start:
            raise UserError(f"{job.name}: {outcome.reason}")
        each(job, outcome)
        return outcome

    def loss(outcome: Outcome) -> float:
        return math.nan if outcome.metric is None else outcome.metric

    # These threads wait for searches, those of `workers`, which end first, for processes.
    with telling(under_way.line), ThreadPoolExecutor(parallel) as searches, workers(parallel) as pool:
        found = [
            searches.submit(
                best_over_seeds,
                lambda lr, seed, of=of: run(of, lr, seed),
                loss,
                of.start,
                of.seeds,
                of.search,
                pool,
                of.factors,
            )
            for of in wanted
        ]
        for number, future in enumerate(as_completed(found), start=1):
            under_way.done(number)
            done(found.index(future), future.result())
    return [future.result() for future in found]


def best_over_seeds(
    run: Callable[[float, int], Result],
    loss: Callable[[Result], float],
    start: float,
    seeds: Sequence[int],
    search: bool = True,
    pool: Executor | None = None,
    factors: Sequence[float] = (),
) -> Best[Result]:
    """Searches the learning rate on the first seed, by factors of two, and runs the other seeds at the best one.

    A search whose first rate diverges begins again at a quarter of it. One over given factors tries just these, with a
    seed of its own.

    Args:
        run: Runs one learning rate with one seed.
        loss: Of a result: infinite where the run diverged, NaN where it failed, which says nothing of its rate. Either
            ends its direction of the search.
        start: The first rate, or the only one.
        seeds: The first one searches.
        search: Whether other rates than `start` are tried.
        pool: Where the runs take place, those of the other seeds at once; without, they run here, one by one.
        factors: Of `start`, all of which a search tries.
    """
    each: Callable[..., Iterable[Result]] = map if pool is None else pool.map
    if search and factors:
        return _best_of_grid(run, loss, rates_of(start, factors), seeds, each)
    first: dict[float, Result] = {}

    def tried(lr: float) -> float:
        (first[lr],) = each(run, [lr], seeds[:1])
        return loss(first[lr])

    rates = search_learning_rate(start, tried) if search else {start: _comparable(tried(start))}
    for _ in range(AGAIN if search else 0):
        if loss(first[start]) != math.inf:
            break
        start /= 4
        rates |= search_learning_rate(start, tried)
    best = min(rates, key=lambda lr: rates[lr])
    others = [] if search and math.isinf(rates[best]) else seeds[1:]
    return Best(rates, best, [first[best], *each(run, [best] * len(others), others)])


def _best_of_grid(
    run: Callable[[float, int], Result],
    loss: Callable[[Result], float],
    rates: Sequence[float],
    seeds: Sequence[int],
    each: Callable[..., Iterable[Result]],
) -> Best[Result]:
    searched = dict(zip(rates, each(run, rates, [SEARCH_SEED] * len(rates)), strict=True))
    losses = {lr: _comparable(loss(result)) for lr, result in searched.items()}
    best = min(losses, key=lambda lr: losses[lr])
    if math.isinf(losses[best]):
        return Best(losses, best, [searched[best]])
    return Best(losses, best, [*each(run, [best] * len(seeds), seeds)])


def rates_of(start: float, factors: Iterable[float]) -> list[float]:
    """Learning rates in increasing order, to six digits, which name a run."""
    return [float(f"{start * factor:.6g}") for factor in sorted(factors)]


def search_learning_rate(start: float, loss: Callable[[float], float]) -> dict[float, float]:
    """Loss by rate: `start`, then on in either direction by factors of two until the best is not at an end.

    An infinite loss or NaN, where a rate diverges, ends that direction, and so does the rate `FURTHEST` from the start.

    Raises:
        ValueError: `start` is not positive.
    """
    if start <= 0:
        raise ValueError(f"a learning rate to start from must be positive, got {start}")
    found = {start: _comparable(loss(start))}
    for factor in (0.5, 2.0):
        rate = start
        for _ in range(FURTHEST):
            if not found[rate] == min(found.values()) < math.inf:
                break
            rate *= factor
            found[rate] = _comparable(loss(rate))
    return found


def _comparable(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss
