"""The progress of a run in optimizer steps: a bar on a terminal, a line now and then in a log."""

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lrtrain.training.callbacks.throughput import Throughput

LINE_SECONDS = 20.0
"""Shortest time between two lines where there is no terminal."""


class StepProgress(ProgressBar):
    """Shows steps done, loss, held-out loss and its step, tokens/s and the time left."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Progress | None = None
        self._shown = True
        self._started = 0.0
        self._first_step = 0
        self._last_line = 0.0
        self._validated = 0  # steps that were done at the last validation

    def enable(self) -> None:
        self._shown = True

    def disable(self) -> None:
        self._shown = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = self._last_line = time.monotonic()
        self._first_step = trainer.global_step
        if not self._shown or not sys.stderr.isatty():
            return
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
        self._bar.add_task("fit", total=_total(trainer), completed=trainer.global_step, values="")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._shown:
            return
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=trainer.global_step, values=self._values(trainer))
            return
        now = time.monotonic()
        done, total = trainer.global_step, _total(trainer)
        if now - self._last_line < LINE_SECONDS and done < total:
            return
        if done == self._first_step:
            return
        self._last_line = now
        left = (now - self._started) / (done - self._first_step) * (total - done)
        print(f"step {done}/{total}  {self._values(trainer)}  {left:.0f} s left", file=sys.stderr, flush=True)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description="validate")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validated = trainer.global_step
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description="fit", values=self._values(trainer))

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
