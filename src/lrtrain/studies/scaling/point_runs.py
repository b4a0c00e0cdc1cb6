"""Training the points of a plan, each run a process of its own."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lrtrain.runtime.errors import UserError
from lrtrain.studies.jobs.job import Job, Outcome
from lrtrain.studies.jobs.launch import train
from lrtrain.studies.jobs.processes import workers
from lrtrain.studies.jobs.search import around
from lrtrain.studies.scaling.grid import Point
from lrtrain.studies.scaling.planned_grid import Plan
from lrtrain.tracking.recorded import recorded


@dataclass(frozen=True)
class Trained:
    """What came of a point with one seed: `loss` is infinite where it diverged, None where it failed.

    `lr` is the searched learning rate, None where the recipe's was taken.
    """

    point: Point
    seed: int
    lr: float | None
    loss: float | None
    reason: str

    @property
    def finished(self) -> bool:
        return self.loss is not None and math.isfinite(self.loss)

    def row(self) -> dict[str, Any]:
        """The point as a row of `points.COLUMNS`."""
        return {**asdict(self.point), "seed": self.seed, "lr": "" if self.lr is None else self.lr, "loss": self.loss}


def train_points(
    plan: Plan,
    points: Sequence[Point],
    runs: Path,
    parallel: int = 1,
    threads: int = 1,
    each: Callable[[list[Trained]], object] = lambda trained: None,
) -> list[Trained]:
    """Trains points with every seed of their plan, `parallel` at a time; what has finished is not repeated.

    Where the plan searches the learning rate, the first seed searches and the others take what it found. `each` is
    called as a point ends. A rate that the optimizer refuses ends its direction of the search. Ctrl-C, SIGTERM and
    errors end the processes, which save first; the next call resumes them.

    Args:
        plan: The plan that the points are of.
        points: The points to train, all or some.
        runs: Folder of the runs, `<runs>/<plan>-<point>-s<seed>[-lr<lr>]`.
        parallel: Points trained at a time.
        threads: `OMP_NUM_THREADS` of a process.
        each: Takes the point's outcomes, one a seed.

    Raises:
        UserError: a run at the plan's rate is refused for its configuration, or one saw other tokens than planned.
    """
    found: dict[str, list[Trained]] = {}
    with workers(parallel) as pool:
        running = {pool.submit(_train_point, plan, point, runs, threads): point for point in points}
        for future in as_completed(running):
            found[running[future].name] = future.result()
            each(future.result())
    return [trained for point in points for trained in found[point.name]]


def _train_point(plan: Plan, point: Point, runs: Path, threads: int) -> list[Trained]:
    def run(seed: int, lr: float | None) -> Outcome:
        return _train(plan, point, seed, lr, runs, threads)

    lr = None
    if plan.lr is not None:
        rates = around(plan.lr, lambda rate: _loss(run(plan.seeds[0], rate)))
        lr = min(rates, key=lambda rate: rates[rate])
    outcomes = [run(seed, lr) for seed in plan.seeds]
    return [
        Trained(point, seed, lr, outcome.metric, outcome.reason)
        for seed, outcome in zip(plan.seeds, outcomes, strict=True)
    ]


def _loss(outcome: Outcome) -> float:
    """The loss of a run within a search; one that failed says nothing of its learning rate and ends the direction."""
    return math.inf if outcome.metric is None else outcome.metric


def _train(plan: Plan, point: Point, seed: int, lr: float | None, runs: Path, threads: int) -> Outcome:
    rate = "" if lr is None else f"-lr{lr:g}"
    job = Job(
        name=f"{plan.name}-{point.name}-s{seed}{rate}",
        configs=tuple(Path(config) for config in plan.configs),
        settings=plan.configuration(point, seed, lr),
        runs=runs,
        threads=threads,
        tags={"lrtrain.study": plan.name, "lrtrain.trial": point.name},
    )
    outcome = train(job)
    if outcome.refused and lr in (None, plan.lr):
        raise UserError(f"{job.name}: {outcome.reason}")
    if outcome.status == "finished":
        assert outcome.run_dir is not None
        seen = _tokens_seen(outcome.run_dir)
        if seen != point.tokens:
            raise UserError(
                f"{outcome.run_dir} saw {seen:,} tokens where {point.tokens:,} were planned: plan again with the "
                "batch, devices and nodes that the run has"
            )
    return outcome


def _tokens_seen(run_dir: Path) -> int:
    """Tokens that a run had seen when it last logged them, at its last step."""
    run = recorded(run_dir)
    return int(run.last.get("throughput/tokens_seen", 0)) if run is not None else 0
