"""Jobs trained each at its best learning rate over seeds."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from lrtrain.runtime.errors import UserError
from lrtrain.studies.jobs.job import Job, Outcome
from lrtrain.studies.jobs.launch import train
from lrtrain.studies.jobs.processes import workers
from lrtrain.studies.jobs.search import Best, best_over_seeds


@dataclass(frozen=True)
class Repeated:
    """What is trained at its best learning rate over seeds.

    Attributes:
        job: Makes the job of a learning rate and a seed.
        start: The first rate of the search, or the only one; 0 where the job takes the recipe's.
        seeds: The first one searches.
        search: Whether the rate is searched.
    """

    job: Callable[[float, int], Job]
    start: float
    seeds: Sequence[int]
    search: bool = True


def train_best(
    wanted: Sequence[Repeated],
    parallel: int = 1,
    keep_checkpoints: bool = False,
    each: Callable[[Job, Outcome], object] = lambda job, outcome: None,
    done: Callable[[int, Best[Outcome]], object] = lambda index, best: None,
) -> list[Best[Outcome]]:
    """Trains them, `parallel` runs at a time; what has finished is not repeated. A refused rate ends its direction.

    Ctrl-C, SIGTERM and errors end the processes, which save first; the next call resumes them.

    Args:
        wanted: What to train.
        parallel: Processes at a time.
        keep_checkpoints: Of runs that have ended.
        each: Called, in any thread, as a run ends.
        done: Called as all runs of one of `wanted`, by its index, have ended.

    Raises:
        UserError: as of `train`; a run at the first rate is refused for its configuration.
    """

    def run(of: Repeated, lr: float, seed: int) -> Outcome:
        job = of.job(lr, seed)
        outcome = train(job, keep_checkpoints=keep_checkpoints)
        if outcome.refused and lr == of.start:
            raise UserError(f"{job.name}: {outcome.reason}")
        each(job, outcome)
        return outcome

    found: dict[int, Best[Outcome]] = {}
    # These threads wait for searches, those of `workers`, which end first, for processes.
    with ThreadPoolExecutor(parallel) as searches, workers(parallel) as pool:
        running = {
            searches.submit(
                best_over_seeds, lambda lr, seed, of=of: run(of, lr, seed), _loss, of.start, of.seeds, of.search, pool
            ): index
            for index, of in enumerate(wanted)
        }
        for future in as_completed(running):
            found[running[future]] = future.result()
            done(running[future], future.result())
    return [found[index] for index in range(len(wanted))]


def _loss(outcome: Outcome) -> float:
    return math.nan if outcome.metric is None else outcome.metric
