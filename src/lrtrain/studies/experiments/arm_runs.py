"""Training an experiment: each variant's learning rate by the same search, then the other seeds at the best one."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path

from lrtrain.runtime.errors import UserError
from lrtrain.studies.experiments.arms import Arm
from lrtrain.studies.jobs.job import Job, Outcome
from lrtrain.studies.jobs.launch import train
from lrtrain.studies.jobs.processes import workers
from lrtrain.studies.jobs.search import around

AGAIN = 3
"""How often a search whose first rate diverges begins anew, each time at a quarter of it."""

SEARCHED = 4
"""Runs of a usual search: 3 where the first rate is the best, 5 two factors beside it."""

STARTUP = 10.0
"""Seconds of a run before its first step."""


@dataclass(frozen=True)
class Trained:
    """What came of an arm.

    Attributes:
        arm: The arm.
        rates: Learning rate -> held-out loss with the first seed; infinite where it diverged or failed.
        lr: The best of them.
        outcomes: One a seed at that rate; the first seed's alone where no rate gave a loss.
    """

    arm: Arm
    rates: dict[float, float]
    lr: float
    outcomes: list[Outcome]


def train_arms(
    arms: Sequence[Arm],
    seeds: int,
    runs: Path,
    parallel: int = 1,
    threads: int = 1,
    keep_checkpoints: bool = False,
    each: Callable[[Job, Outcome], object] = lambda job, outcome: None,
) -> list[Trained]:
    """Trains arms, `parallel` runs at a time; what has finished is not repeated.

    The first seed searches the learning rate: by factors of two from the variant's, on while the best is at an end. A
    run that diverges or fails ends its direction, and so does a rate that the optimizer refuses. `each` is called, in
    any thread, as a run ends. Ctrl-C, SIGTERM and errors end the processes, which save first; the next call resumes
    them.

    Raises:
        UserError: a run at the variant's own rate is refused for its configuration.
    """

    def run(arm: Arm, lr: float, seed: int) -> Outcome:
        job = arm.job(lr, seed, runs, threads)
        outcome = train(job, keep_checkpoints=keep_checkpoints)
        if outcome.refused and lr == arm.variant.lr:
            raise UserError(f"{job.name}: {outcome.reason}")
        each(job, outcome)
        return outcome

    found: dict[str, tuple[dict[float, float], float]] = {}
    outcomes: dict[str, dict[int, Outcome]] = {}
    with workers(parallel) as pool:
        searching = {pool.submit(_search, arm, run): arm for arm in arms}
        repeating: dict[Future[Outcome], tuple[Arm, int]] = {}
        pending: set[Future] = set(searching)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                if future in searching:
                    arm = searching[future]
                    rates, lr, first = future.result()
                    found[arm.name], outcomes[arm.name] = (rates, lr), {0: first}
                    more = range(1, seeds if math.isfinite(rates[lr]) else 1)
                    own = {pool.submit(run, arm, lr, seed): (arm, seed) for seed in more}
                    repeating |= own
                    pending |= set(own)
                else:
                    arm, seed = repeating[future]
                    outcomes[arm.name][seed] = future.result()
    return [Trained(arm, *found[arm.name], [o for _, o in sorted(outcomes[arm.name].items())]) for arm in arms]


def minutes(runs: int, seconds: float, parallel: int = 2) -> float:
    """The time that some runs take, each of `seconds` and its start, `parallel` at a time."""
    return runs * (seconds + STARTUP) / parallel / 60


def _search(arm: Arm, run: Callable[[Arm, float, int], Outcome]) -> tuple[dict[float, float], float, Outcome]:
    """Loss by rate, the best rate, and its outcome, all of the first seed."""
    outcomes: dict[float, Outcome] = {}

    def loss(lr: float) -> float:
        outcomes[lr] = run(arm, lr, 0)
        metric = outcomes[lr].metric
        return math.inf if metric is None else metric

    start = arm.variant.lr
    if not arm.variant.search:
        rates = {start: loss(start)}
    else:
        rates = around(start, loss)
        for _ in range(AGAIN):
            if outcomes[start].status != "diverged":
                break
            start /= 4
            rates |= around(start, loss)
    best = min(rates, key=lambda lr: rates[lr])
    return rates, best, outcomes[best]
