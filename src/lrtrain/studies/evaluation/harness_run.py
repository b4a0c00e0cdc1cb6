"""One evaluation: tasks asked of a model by lm-eval, and the figures that come of it."""

import json
import logging
import random
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.table import table
from lrtrain.studies.evaluation.harness_tasks import leaves

BARS = ("lm_eval.api.task", "lm_eval.api.model", "lm_eval.models.huggingface")
BOOTSTRAPS = 100_000  # lm-eval's own number, where a standard error has no formula


@dataclass(frozen=True)
class Figure:
    """A metric of a task, or of a group of them, as `eval/hellaswag/acc_norm` is of HellaSwag.

    What is no task's usual setting is a part of its name, `eval/hellaswag/5-shot/first-100/acc_norm`, so that figures
    of other settings have a series of their own.
    """

    task: str
    setting: str
    metric: str
    value: float
    error: float | None
    documents: int | None

    @property
    def name(self) -> str:
        return "/".join(filter(None, ["eval", self.task, self.setting, self.metric]))


@dataclass(frozen=True)
class Evaluated:
    """What lm-eval found, and `notes` on what a reader of the figures should know."""

    figures: list[Figure]
    found: dict[str, Any]
    notes: list[str]

    def metrics(self) -> dict[str, float]:
        """The figures and their standard errors by the names under which a run records them."""
        errors = {f"{one.name}_stderr": one.error for one in self.figures if one.error is not None}
        return {one.name: one.value for one in self.figures} | errors

    def as_table(self) -> str:
        rows = [["task", "setting", "metric", "value", "± error", "documents"]]
        for one in self.figures:
            error, documents = (
                "" if x is None else f"{x:.4f}" if isinstance(x, float) else f"{x:,}"
                for x in (one.error, one.documents)
            )
            rows.append([one.task, one.setting, one.metric, f"{one.value:.4f}", error, documents])
        if not any(row[1] for row in rows[1:]):
            rows = [[row[0], *row[2:]] for row in rows]
        return table(rows)

    def as_json(self, about: Mapping[str, Any]) -> str:
        """All that lm-eval tells, with what is said `about` the model."""
        from lm_eval.utils import handle_non_serializable

        content = {"lrtrain": {**about, "notes": self.notes}, **self.found}
        return json.dumps(content, indent=2, ensure_ascii=False, default=handle_non_serializable) + "\n"


def run_harness(
    model: Any,
    tasks: Sequence[Any],
    num_fewshot: int | None = None,
    limit: float | None = None,
    context: int | None = None,
    bars: bool = False,
    bootstraps: int = BOOTSTRAPS,
) -> Evaluated:
    """Asks the tasks of a model, lm-eval's or ours.

    Args:
        model: lm-eval's LM.
        tasks: Of `load_tasks`; they may be asked again.
        num_fewshot: Solved examples before a question; None takes the task's own number.
        limit: Documents of each task, a share of them below 1; None takes all.
        context: Tokens, where it is another than the model's own, for the names of the figures.
        bars: Show lm-eval's progress.
        bootstraps: Samples of a standard error that has no formula.

    Raises:
        UserError: two tasks are one and the same, or one cannot be asked.
    """
    # Not `simple_evaluate`, which spends seconds on describing the machine, time and again.
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    own = leaves(tasks)
    usual = {name: task.get_config("num_fewshot") for name, task in own.items()}
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    fixed = []
    with _warnings() as warnings, _bars(bars):
        try:
            for name, task in own.items():
                if num_fewshot is not None and usual[name] != 0:
                    task.set_config("num_fewshot", num_fewshot)
                elif usual[name] is None:
                    task.set_config("num_fewshot", 0)
                elif num_fewshot:
                    fixed.append(f"{name} is asked without examples: its YAML says num_fewshot: 0")
                task.set_fewshot_seed(DEFAULT_OTHER_SEED)
            asked = TaskManager(include_defaults=False).load(list(tasks))
            found: Any = evaluate(model, asked, limit=limit, bootstrap_iters=bootstraps, log_samples=False)
        except UserError:
            raise
        except Exception as error:  # documents that lack a field, code that is not to run, and what else tasks meet
            if _of_our_model(error):
                raise
            why = " ".join(str(error).split())[:300]
            raise UserError(f"lm-eval cannot ask {', '.join(own)}: {type(error).__name__}: {why}") from error
        finally:
            for name, task in own.items():
                task.set_config("num_fewshot", usual[name])
    return Evaluated(list(_figures(found, usual, context)), found, [*_cut(model), *fixed, *warnings])


def _figures(found: Mapping[str, Any], usual: Mapping[str, int | None], context: int | None) -> Iterator[Figure]:
    for task, values in {**found["results"], **found.get("groups", {})}.items():
        shots, samples = found["n-shot"].get(task), found["n-samples"].get(task, {})
        effective = samples.get("effective")
        setting = [f"{shots}-shot"] if shots is not None and task in usual and shots != (usual[task] or 0) else []
        setting += [f"first-{effective}"] if effective is not None and effective < samples["original"] else []
        setting += [f"context-{context}"] if context is not None else []
        for key, value in values.items():
            metric, comma, rule = key.partition(",")
            if not comma or metric.endswith("stderr") or isinstance(value, str | bool):
                continue
            error = values.get(f"{metric}_stderr,{rule}")
            named = metric if rule == "none" else f"{metric}/{rule}"
            known = float(error) if isinstance(error, int | float) else None
            yield Figure(task, "/".join(setting), named, float(value), known, effective)


def _of_our_model(error: Exception) -> bool:
    """Whether an error was raised while our model answered."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__") == "lrtrain.studies.evaluation.decoder_lm" for frame in frames)


def _cut(model: Any) -> list[str]:
    """That contexts were too long, from a model that counts them."""
    cut, asked = getattr(model, "cut", 0), getattr(model, "asked", 0)
    if not cut:
        return []
    context = f"the context of {model.max_length} tokens"
    return [f"{cut:,} of {asked:,} requests are longer than {context}: cut at their beginning"]


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What lm-eval warns of, each once; warnings that differ by numbers alone are one, with how many there were."""
    seen: dict[str, tuple[str, int]] = {}
    notes: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = " ".join(record.getMessage().split())
            key = re.sub(r"\d+", "#", text)
            seen[key] = seen.get(key, (text, 0))[0], seen.get(key, (text, 0))[1] + 1

    logger, handler = logging.getLogger("lm_eval"), Collect(logging.WARNING)
    logger.addHandler(handler)
    before, logger.propagate = logger.propagate, False
    try:
        yield notes
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
        notes += [
            f"lm-eval: {text}" + (f" (and {n - 1:,} more like this)" if n > 1 else "") for text, n in seen.values()
        ]


def _no_bar(bar: Any, *arguments: Any, **options: Any) -> Any:
    return bar(*arguments, **{**options, "disable": True})


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """lm-eval's progress bars, or none."""
    modules: list[Any] = [sys.modules[name] for name in BARS if name in sys.modules]
    before = [module.tqdm for module in modules]
    for module in () if shown else modules:
        module.tqdm = partial(_no_bar, module.tqdm)
    try:
        yield
    finally:
        for module, bar in zip(modules, before, strict=True):
            module.tqdm = bar
