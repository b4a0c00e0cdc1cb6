"""The progress of a run in optimizer steps, and of a validation: a bar on a terminal, a line now and then in a log."""

import math
import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lrtrain.runtime.long_work import Lines, how_far
from lrtrain.runtime.units import duration
from lrtrain.training.callbacks.throughput import Throughput


class StepProgress(ProgressBar):
    """Shows steps done, loss, held-out loss and its step, tokens/s and the time left; in a validation its batches."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Progress | None = None
        self._lines = Lines()
        self._shown = True
        self._started = 0.0
        self._first_step = 0
        self._validated = 0  # steps that were done at the last validation
        self._validation = 0.0  # when it began
        self._batches = 0  # of it that are done

    def enable(self) -> None:
        self._shown = True

    def disable(self) -> None:
        self._shown = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started, self._lines = time.monotonic(), Lines()
        self._first_step = trainer.global_step
        if bar := self._begin():
            bar.add_task("fit", total=_total(trainer), completed=trainer.global_step, values="")

    def _begin(self) -> Progress | None:
        if not self._shown or not sys.stderr.isatty() or self._bar is not None:
            return None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._bar.start()
        return self._bar

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._shown:
            return
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=trainer.global_step, values=self._values(trainer))
            return
        done, total = trainer.global_step, _total(trainer)
        if done == self._first_step or not (done == total or self._lines.due()):
            return
        left = (time.monotonic() - self._started) / (done - self._first_step) * (total - done)
        share = f"{done / total:.0%}  " if total else ""
        text = f"step {done}/{total}  {share}{self._values(trainer)}  {duration(left)} left"
        print(text, file=sys.stderr, flush=True)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin_evaluation(trainer, "validate", trainer.num_val_batches)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin_evaluation(trainer, "test", trainer.num_test_batches)

    def _begin_evaluation(self, trainer: L.Trainer, name: str, batches: list[int | float]) -> None:
        self._validation, self._batches = time.monotonic(), 0
        if trainer.state.fn != TrainerFn.FITTING:
            self._lines = Lines()
            self._begin()
        if self._bar is not None:
            total = sum(batches)
            self._bar.add_task(name, total=total if math.isfinite(total) else None, values="")

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self._count(trainer, "validate", trainer.num_val_batches)

    def on_test_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self._count(trainer, "test", trainer.num_test_batches)

    def _count(self, trainer: L.Trainer, name: str, batches: list[int | float]) -> None:
        self._batches += 1
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[-1], completed=self._batches)
        elif self._shown and not trainer.sanity_checking and self._lines.due():
            total = sum(batches)
            seconds = time.monotonic() - self._validation
            far = how_far(self._batches, total if math.isfinite(total) else None, self._batches, seconds, "batches")
            print(f"{name}: {far}", file=sys.stderr, flush=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validated = trainer.global_step
        if self._bar is not None and trainer.state.fn == TrainerFn.FITTING:
            self._bar.remove_task(self._bar.task_ids[-1])
            for task in self._bar.task_ids:
                self._bar.update(task, values=self._values(trainer))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _values(self, trainer: L.Trainer) -> str:
        metrics = trainer.callback_metrics
        parts = []
        if "train/loss" in metrics:
            parts.append(f"loss {float(metrics['train/loss']):.3f}")
        if "val/loss" in metrics:
            parts.append(f"val {float(metrics['val/loss']):.3f} at {self._validated}")
        speed = next((c.tokens_per_second for c in trainer.callbacks if isinstance(c, Throughput)), 0.0)  # type: ignore[attr-defined]
        if speed:
            parts.append(f"{speed:,.0f} tok/s")
        return "  ".join(parts)


def _total(trainer: L.Trainer) -> int:
    return int(trainer.estimated_stepping_batches)
