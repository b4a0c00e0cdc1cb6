"""The work at a study: trials claimed, trained, and told, several at a time."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from types import MappingProxyType
from typing import Any

from optuna.trial import Trial, TrialState

from lrtrain.config.settings import as_text
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.long_work import telling
from lrtrain.studies.jobs.job import Job, Outcome, Resources
from lrtrain.studies.jobs.launch import run_job
from lrtrain.studies.jobs.processes import workers
from lrtrain.studies.jobs.under_way import UnderWay
from lrtrain.studies.sweep.study import HEARTBEAT, POINT, STATUS, VALUES, Study

CRASHES = 3
"""Trials that fail in a row, from the first on, after which the cause is taken to be common to all."""
POLL = 2.0
"""Seconds between two looks at trials that run elsewhere."""


def work(
    study: Study,
    resources: Resources,
    logger: object = None,
    tags: Mapping[str, str] = MappingProxyType({}),
    say: Callable[[str], object] = print,
) -> None:
    """Trains trials until none waits or runs anywhere; says a line for each, and on stderr each minute how far it is.

    A trial's runs are `<runs>/<study>/trial-<NNNN>`, with seeds in `seed-<seed>` below.

    Args:
        study: whose trials.
        resources: how many at a time.
        logger: `trainer.logger` of the trials.
        tags: of every trial's MLflow run.
        say: prints a line.

    Raises:
        UserError: the first trial is refused by `lrtrain fit`, or all fail from the first on. Those wait again.
    """
    running: dict[Future[list[Outcome]], Trial] = {}
    failed: list[Trial] = []
    waited_for = 0
    before = _ended(study)
    under_way = UnderWay("trials", len(study.trials()) - before)
    try:
        with telling(under_way.line), workers(resources.jobs) as pool:
            while True:
                while len(running) < resources.jobs and (claimed := study.claim()) is not None:
                    trial, values = claimed
                    jobs = _jobs(study, resources, logger, tags, trial.user_attrs[POINT], values)
                    running[pool.submit(_repeat, jobs, study.space.metric, under_way)] = trial
                if not running:
                    elsewhere = sum(trial.state == TrialState.RUNNING for trial in study.trials())
                    if not elsewhere:
                        break
                    if elsewhere != waited_for:
                        say(f"waiting for {elsewhere} trials that run elsewhere")
                    waited_for = elsewhere
                    time.sleep(POLL)
                    continue
                done, _ = wait(running, HEARTBEAT, FIRST_COMPLETED)
                study.beat(list(running.values()))
                for future in done:
                    outcomes = future.result()
                    trial = running.pop(future)
                    value = _tell(study, trial, outcomes)
                    say(_line(study, trial, outcomes, value))
                    under_way.done(_ended(study) - before)
                    if value is None:
                        failed.append(trial)
                        _stop_if_common(study, failed, outcomes[-1])
    except BaseException:
        for trial in running.values():
            study.give_back(trial)
        raise


def _ended(study: Study) -> int:
    """Trials that are over, wherever they ran."""
    return sum(trial.state.is_finished() for trial in study.trials())


def point_text(values: dict[str, Any]) -> str:
    """A point in a line, numbers to six digits."""
    texts = {key: f"{value:.6g}" if isinstance(value, float) else as_text(value) for key, value in values.items()}
    return "  ".join(f"{key}={text}" for key, text in texts.items())


def _jobs(
    study: Study, resources: Resources, logger: object, tags: Mapping[str, str], point: int, values: dict[str, Any]
) -> list[Job]:
    """The runs of a trial: one, or one for each seed."""
    name, space = f"{study.name}/trial-{point:04d}", study.space
    text = point_text(values)[:5000]
    tags = {**tags, "lrtrain.study": study.name, "lrtrain.trial": str(point), "lrtrain.point": text}
    settings = {"trainer.logger": logger, **space.overrides, **values}
    repeats = {f"{name}/seed-{seed}": {**settings, "seed_everything": seed} for seed in space.seeds}
    return [
        Job(name, space.configs, settings, resources.runs, resources.threads, tags)
        for name, settings in (repeats or {name: settings}).items()
    ]


def _repeat(jobs: list[Job], metric: str, under_way: UnderWay) -> list[Outcome]:
    """The outcomes of a trial's jobs, up to the first that did not finish."""
    outcomes = []
    for job in jobs:
        outcomes.append(under_way.run(job, partial(run_job, job, metric)))
        if outcomes[-1].status != "finished":
            break
    return outcomes


def _tell(study: Study, trial: Trial, outcomes: list[Outcome]) -> float | None:
    """Ends a trial with the mean over its jobs, infinitely bad if one diverged, None if one failed."""
    last = outcomes[-1]
    metrics = [outcome.metric for outcome in outcomes if outcome.metric is not None]
    value = None if last.status == "failed" else statistics.fmean(metrics)
    if last.status == "diverged":
        value = math.inf if study.space.mode == "min" else -math.inf
    study.tell(
        trial,
        value,
        last.status,
        last.reason,
        metrics=metrics,
        seconds=sum(outcome.seconds for outcome in outcomes),
        run_dirs=[str(outcome.run_dir) for outcome in outcomes],
    )
    return value


def _line(study: Study, trial: Trial, outcomes: list[Outcome], value: float | None) -> str:
    """`trial 3 of 9  model.optimizers.hidden.lr=0.01  val/loss 5.1234 in 41 s, best 5.1021 of trial 2`."""
    attributes, last, best = trial.user_attrs, outcomes[-1], study.best()
    text = f"trial {attributes[POINT]} of {len(study.trials())}  {point_text(attributes[VALUES])}  "
    if last.status != "finished":
        return f"{text}{last.status}: {last.reason}"
    text += f"{study.space.metric} {value:.4f} in {sum(outcome.seconds for outcome in outcomes):.0f} s"
    return f"{text}, best {best.value:.4f} of trial {best.user_attrs[POINT]}" if best is not None else text


def _stop_if_common(study: Study, failed: list[Trial], last: Outcome) -> None:
    trials = study.trials()
    ended = [trial.user_attrs.get(STATUS) for trial in trials if trial.state.is_finished()]
    waiting = len(ended) < len(trials)
    if set(ended) != {"failed"} or (not last.refused and len(failed) < CRASHES and waiting):
        return
    for trial in failed:
        study.give_back(trial)
    if last.refused:
        raise UserError(last.reason)
    raise UserError(f"all {len(failed)} trials so far failed, the last one: {last.reason}")
