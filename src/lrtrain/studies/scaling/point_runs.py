"""Training the points of a plan, each run a process of its own."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.hints import nearest
from lrtrain.studies.jobs.best_rate import Best, Repeated, train_best
from lrtrain.studies.jobs.job import Job, Outcome, Resources
from lrtrain.studies.scaling.grid import Point
from lrtrain.studies.scaling.planned_grid import Plan
from lrtrain.studies.scaling.points import POINTS, write_points
from lrtrain.tracking.recorded import recorded


def train_grid(
    folder: Path, resources: Resources, tell: Callable[[str], None], only: Sequence[str] | None = None
) -> None:
    """Trains the points of `<folder>/plan.yaml` that have no loss yet, and writes `points.csv` once all were asked for.

    Where the plan searches the learning rate, the first seed searches and the others take what it found.

    Args:
        folder: Of the plan.
        resources: Where the runs go, `<runs>/<plan>-<point>-s<seed>[-lr<lr>]`, and how many are trained at a time.
        tell: Takes a line for each point and seed as they end.
        only: Names of the points to train, None for all.

    Raises:
        UserError: the plan has no such point; some runs failed, a run at the plan's rate was refused for its
            configuration, or one saw other tokens than planned.
    """
    plan = Plan.load(folder)
    known = {point.name: point for point in plan.points}
    for name in only or []:
        if name not in known:
            raise UserError(f"--only {name}: the plan has no such point; {nearest(name, known)}")
    points = [known[name] for name in dict.fromkeys(only or known)]
    tell(f"{len(points)} points, {len(plan.seeds)} seeds each, runs in {resources.runs}")

    def told(index: int, best: Best[Outcome]) -> None:
        for row in _rows(plan, points[index], best):
            rate = "" if row["lr"] == "" else f"  lr {row['lr']:g}"
            result = f"loss {row['loss']:.4f}" if _finished(row) else f"no loss: {row['reason']}"
            tell(f"{row['name']}  seed {row['seed']}{rate}  {result}")
        if best.at_end:
            tell(f"{points[index].name}  {best.at_end}")

    wanted = [
        Repeated(partial(_job, plan, point, resources), plan.lr or 0.0, plan.seeds, plan.lr is not None)
        for point in points
    ]
    found = train_best(wanted, resources.jobs, each=partial(_check_tokens, plan), done=told)
    rows = [row for point, best in zip(points, found, strict=True) for row in _rows(plan, point, best)]
    if only is None:
        finished = [row for row in rows if _finished(row)]
        write_points(folder / POINTS, finished)
        tell(f"wrote {folder / POINTS}: {len(finished)} of {len(rows)} runs have a loss")
    if failed := [f"{row['name']} seed {row['seed']}" for row in rows if row["loss"] is None]:
        raise UserError(f"{len(failed)} runs failed ({', '.join(failed)}): mend what the lines above say and run again")


def _rows(plan: Plan, point: Point, best: Best[Outcome]) -> list[dict[str, Any]]:
    """What came of a point, one row of `points.COLUMNS` a seed, and why it has no loss: infinite if diverged."""
    lr = "" if plan.lr is None else best.lr
    return [
        {**asdict(point), "seed": seed, "lr": lr, "loss": outcome.metric, "reason": outcome.reason}
        for seed, outcome in zip(plan.seeds, best.results, strict=False)
    ]


def _finished(row: dict[str, Any]) -> bool:
    return row["loss"] is not None and math.isfinite(row["loss"])


def _job(plan: Plan, point: Point, resources: Resources, lr: float, seed: int) -> Job:
    rate = "" if plan.lr is None else f"-lr{lr:g}"
    return Job(
        name=f"{plan.name}-{point.name}-s{seed}{rate}",
        configs=tuple(Path(config) for config in plan.configs),
        settings=plan.configuration(point, seed, None if plan.lr is None else lr),
        runs=resources.runs,
        threads=resources.threads,
        records=resources.records,
        tags={"lrtrain.study": plan.name, "lrtrain.trial": point.name},
    )


def _check_tokens(plan: Plan, job: Job, outcome: Outcome) -> None:
    """Raises UserError where a finished run did not see the tokens that were planned for its steps."""
    if outcome.status != "finished" or outcome.run_dir is None:
        return
    run = recorded(outcome.run_dir)
    seen = int(run.last.get("throughput/tokens_seen", 0)) if run is not None else 0
    planned = int(str(job.settings["trainer.max_steps"])) * plan.tokens_per_step
    if seen != planned:
        raise UserError(
            f"{outcome.run_dir} saw {seen:,} tokens where {planned:,} were planned: plan again with the batch, devices "
            "and nodes that the run has"
        )
