"""An evaluation every so many steps of a run, which changes nothing in it."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from tokenizers import Tokenizer

from lrtrain.runtime import liveness
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.lost_processes import is_lost
from lrtrain.tracking.recorded import recorded
from lrtrain.training.callbacks.throughput import Throughput


class ToldToEndError(Exception):
    """Ends an evaluation because the run is to end."""


class Evaluation(L.Callback):
    """Asks tasks of lm-eval's harness of the weights every N optimizer steps and after the last one.

    In YAML, under `trainer.callbacks`:

        - class_path: lrtrain.studies.evaluation.Evaluation
          init_args: {tasks: [hellaswag, piqa], every_n_steps: 1000, limit: 200}

    It logs `eval/<task>/<metric>` and `eval/seconds` of the step. All processes take part, each with a share of the
    batches, also where each holds some rows of every weight. Training is bit for bit what it were without it. The
    checkpoint that is due at the step is saved first, and a run that is told to end breaks an evaluation off. One that
    fails on all processes is warned of and logged as `eval/failed`, and training goes on; where one process alone
    fails in the middle of gathering sharded weights, the run ends.

    Args:
        tasks: Names as `lrtrain evaluate --tasks` takes them; their data are loaded before the first step.
        every_n_steps: Optimizer steps between evaluations; null evaluates after the last one alone.
        include_path: A folder of further tasks in the harness's YAML.
        num_fewshot: Solved examples before each question; null: the task's own number.
        limit: Documents of each task, a share of them below 1; null: all.
        batch_size: Sequences in a batch of one process.
        context: Tokens of the context; null: `data.block_size`.

    Raises:
        UserError: a task is unknown or has no data here, a value is out of range, lm-eval is not installed, the data
            module has no tokenizer, or a task generates text and the weights are sharded.
    """

    def __init__(
        self,
        tasks: list[str],
        every_n_steps: int | None = None,
        include_path: str | None = None,
        num_fewshot: int | None = None,
        limit: float | None = None,
        batch_size: int = 16,
        context: int | None = None,
    ) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("batch_size", batch_size), ("context", context)):
            if value is not None and value < 1:
                raise UserError(f"Evaluation: {name} is {value}: give at least 1")
        if limit is not None and not limit > 0:
            raise UserError(f"Evaluation: limit is {limit}: give a number of documents, or a share of them below 1")
        if num_fewshot is not None and num_fewshot < 0:
            raise UserError(f"Evaluation: num_fewshot is {num_fewshot}: give at least 0")
        self.tasks = tasks
        self.every_n_steps = every_n_steps
        self.include_path = include_path
        self.num_fewshot = num_fewshot
        self.limit = limit
        self.batch_size = batch_size
        self.context = context
        self._loaded: list[Any] = []
        self._model: Any = None
        self._done: int | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        from lrtrain.studies.evaluation.harness_tasks import check_names, leaves, load_tasks

        names, include = list(self.tasks), [Path(self.include_path)] if self.include_path else []
        with _own_random():
            self._loaded = load_tasks(names, check_names(names, include))
            texts = [name for name, task in leaves(self._loaded).items() if task.OUTPUT_TYPE == "generate_until"]
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        kind = f"{type(data).__module__}.{type(data).__qualname__}"
        if not hasattr(data, "tokenizer_json"):
            raise UserError(f"Evaluation: {kind} has no tokenizer_json(), and tasks are texts; leave the callback out")
        if self.context is None and not hasattr(data, "block_size"):
            raise UserError(f"Evaluation: {kind} has no block_size: set the callback's context")
        if texts and _sharded(trainer):
            raise UserError(
                f"Evaluation: {texts[0]} generates text, and the weights are sharded: leave it to lrtrain evaluate, "
                "which reads the checkpoint"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._model, self._done = None, self._recorded(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        due = self.every_n_steps and step and step % self.every_n_steps == 0
        if not due or step == self._done or not self._loaded:
            return
        for callback in trainer.checkpoint_callbacks:  # saves what is due, and leaves where that is agreed
            callback.on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == self._done or not self._loaded:
            return
        for callback in trainer.checkpoint_callbacks:  # whoever is killed in this evaluation has the last weights
            callback.on_train_end(trainer, pl_module)
        self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        from lrtrain.studies.evaluation.decoder_lm import LoneFailureError
        from lrtrain.studies.evaluation.harness_run import run_harness

        step, began = trainer.global_step, time.perf_counter()
        first, self._done = self._model is None, step
        try:
            with _undisturbed(trainer, pl_module):
                model = self._model = self._model or self._made(trainer, pl_module)
                found = run_harness(model, self._loaded, self.num_fewshot, self.limit, self.context, bootstraps=1000)
        except ToldToEndError:
            rank_zero_warn(f"the evaluation at step {step} is broken off: the run was told to end")
            return
        except Exception as error:
            if isinstance(error, LoneFailureError) or is_lost(error):
                raise
            why = " ".join(str(error).split())[:300] or type(error).__name__
            rank_zero_warn(f"the evaluation at step {step} failed, and training goes on: {type(error).__name__}: {why}")
            metrics = {"eval/failed": 1.0}
        else:
            metrics = found.metrics()
            told = ", ".join(f"{one.name.removeprefix('eval/')} {one.value:.4f}" for one in found.figures)
            rank_zero_only(print)(f"evaluation at step {step}: {told}")
            for note in found.notes if first else []:
                rank_zero_warn(note)
        seconds = time.perf_counter() - began
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Throughput):
                callback.leave_out(seconds)
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.log_metrics(metrics | {"eval/seconds": seconds}, step=step)

    def _made(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Any:
        """The decoder in training as a model of lm-eval."""
        from lrtrain.studies.evaluation.decoder_lm import DecoderLM

        def before_batch() -> None:
            liveness.beat()
            told = any(getattr(callback, "told", False) for callback in trainer.checkpoint_callbacks)
            if trainer.strategy.reduce_boolean_decision(told, all=False):
                raise ToldToEndError

        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        decoder: Any = pl_module.decoder
        tokenizer = Tokenizer.from_str(data.tokenizer_json())
        return DecoderLM(decoder, tokenizer, self.context or data.block_size, self.batch_size, before_batch)

    def _recorded(self, trainer: L.Trainer) -> int | None:
        """The step from which the run goes on, if it has the evaluation of that: it is not repeated."""
        if trainer.fast_dev_run or not self._loaded:  # type: ignore[attr-defined]
            return None
        run = recorded(Path(trainer.default_root_dir)) if trainer.is_global_zero else None
        series = None if run is None else run.metrics.get("eval/seconds")
        known = trainer.strategy.broadcast(series is not None and trainer.global_step in series.step)
        return trainer.global_step if known else None


@contextmanager
def _undisturbed(trainer: L.Trainer, pl_module: L.LightningModule) -> Iterator[None]:
    """The modules in evaluation, without gradients, uncompiled, in the run's precision; all as it was afterwards."""
    modes = [(module, module.training) for module in pl_module.modules()]
    pl_module.eval()
    try:
        # Compiled blocks would be compiled again for every length of a sequence.
        eager, precision = torch.compiler.set_stance("force_eager"), trainer.precision_plugin.forward_context()
        with _own_random(), torch.no_grad(), eager, precision:
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _own_random() -> Iterator[None]:
    """Leaves the random numbers of training as they were, also after an error; even a task's name may draw one."""
    with ExitStack() as random:
        random.enter_context(isolate_rng())
        try:
            yield
        finally:
            random.close()


def _sharded(trainer: L.Trainer) -> bool:
    return isinstance(trainer.strategy, ModelParallelStrategy) and trainer.world_size > 1
