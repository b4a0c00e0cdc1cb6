"""Training the points of a plan, each run a process of its own."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lrtrain.runtime.errors import UserError
from lrtrain.studies.jobs.best_rate import Best, Repeated, train_best
from lrtrain.studies.jobs.job import Job, Outcome
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

    Where the plan searches the learning rate, the first seed searches and the others take what it found.

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
    searched = plan.lr is not None

    def told(index: int, best: Best[Outcome]) -> list[Trained]:
        lr = best.lr if searched else None
        return [
            Trained(points[index], seed, lr, outcome.metric, outcome.reason)
            for seed, outcome in zip(plan.seeds, best.results, strict=False)
        ]

    wanted = [
        Repeated(partial(_job, plan, point, runs, threads), plan.lr or 0.0, plan.seeds, searched) for point in points
    ]
    found = train_best(
        wanted,
        parallel,
        each=partial(_check_tokens, plan),
        done=lambda index, best: each(told(index, best)),
    )
    return [trained for index, best in enumerate(found) for trained in told(index, best)]


def _job(plan: Plan, point: Point, runs: Path, threads: int, lr: float, seed: int) -> Job:
    rate = "" if plan.lr is None else f"-lr{lr:g}"
    return Job(
        name=f"{plan.name}-{point.name}-s{seed}{rate}",
        configs=tuple(Path(config) for config in plan.configs),
        settings=plan.configuration(point, seed, None if plan.lr is None else lr),
        runs=runs,
        threads=threads,
        tags={"lrtrain.study": plan.name, "lrtrain.trial": point.name},
    )


def _check_tokens(plan: Plan, job: Job, outcome: Outcome) -> None:
    """Raises UserError where a finished run did not see the tokens that were planned for its steps."""
    if outcome.status != "finished" or outcome.run_dir is None:
        return
    planned, seen = int(str(job.settings["trainer.max_steps"])) * plan.tokens_per_step, _tokens_seen(outcome.run_dir)
    if seen != planned:
        raise UserError(
            f"{outcome.run_dir} saw {seen:,} tokens where {planned:,} were planned: plan again with the batch, devices "
            "and nodes that the run has"
        )


def _tokens_seen(run_dir: Path) -> int:
    """Tokens that a run had seen when it last logged them, at its last step."""
    run = recorded(run_dir)
    return int(run.last.get("throughput/tokens_seen", 0)) if run is not None else 0
