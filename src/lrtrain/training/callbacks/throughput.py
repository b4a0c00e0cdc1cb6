"""Tokens per second, tokens and FLOPs spent, model FLOPs utilization, and where the time goes."""

import math
import time
from functools import cache
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch.trainer.states import TrainerFn

TOTALS = ("tokens_seen", "flops", "seconds", "step_seconds", "validation_seconds")


class Throughput(L.Callback):
    """Logs speed and running totals under `throughput/…`, at the Trainer's log interval and once more at the end.

    - `tokens_per_second` over the interval, and `mfu`, model FLOPs utilization: tokens/s · 3 · forward FLOPs per
      token / peak FLOP/s of all devices, without recomputation (arXiv 2204.02311, appendix B). The peak is the
      vendor's figure for the compute dtype on a GPU, and on a CPU the rate of a large matrix product, measured
      once in the compute dtype or in float32, whichever is faster.
    - `tokens_seen` and `flops`: trained on so far, the latter as 3 · forward FLOPs per token at the time, so a
      projection whose cost changes during the run counts as it was.
    - `seconds`: time in training batches including waiting for data, without validation; `step_seconds`: its part
      inside batches, the rest being data, logging and checkpoints; `validation_seconds`: time in validation.

    The totals are saved and resumed. After a checkpoint that does not hold one, that total is NaN and not logged.
    """

    def __init__(self) -> None:
        self.tokens_seen = 0
        self.flops = 0.0
        self.seconds = 0.0
        self.step_seconds = 0.0
        self.validation_seconds = 0.0
        self.tokens_per_second = 0.0
        self._tokens = 0
        self._interval = 0.0
        self._last = self._began = 0.0
        self._trained = False
        self._step = 0

    def leave_out(self, seconds: float) -> None:
        """Takes seconds since the last batch out of the time in training: another callback had them for itself."""
        self._last += seconds

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        self._last = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last = time.perf_counter()
        if not trainer.sanity_checking:
            self.validation_seconds += self._last - self._began
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._log_totals(trainer)  # of a run that was ended in its last validation, where it is tracked

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        tokens = batch[:, 1:].numel() * trainer.world_size
        flops = 3 * pl_module.decoder.flops_per_token(batch.shape[1] - 1)  # type: ignore[operator, union-attr]
        self.tokens_seen += tokens
        self.flops += flops * tokens
        self.seconds += now - self._last
        self.step_seconds += now - self._began
        self._tokens += tokens
        self._interval += now - self._last
        self._last = now
        self._trained = True
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not stepped or not every or trainer.global_step % every:
            return
        self._measure()
        values = {"throughput/tokens_per_second": self.tokens_per_second} | self._totals()
        peak = peak_flops(pl_module.device, compute_dtype(trainer)) * trainer.world_size
        if peak:
            values["throughput/mfu"] = self.tokens_per_second * flops / peak
        pl_module.log_dict(values, rank_zero_only=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._measure()
        if self._trained:
            self._log_totals(trainer)

    def _log_totals(self, trainer: L.Trainer) -> None:
        """Logs the totals with the last steps and the last validation, which no log interval may have met."""
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.log_metrics(self._totals(), step=trainer.global_step)

    def _totals(self) -> dict[str, float]:
        totals = {f"throughput/{name}": float(getattr(self, name)) for name in TOTALS}
        return {name: value for name, value in totals.items() if not math.isnan(value)}

    def _measure(self) -> None:
        if self._interval:
            self.tokens_per_second = self._tokens / self._interval
        self._tokens, self._interval = 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in TOTALS}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in TOTALS:
            setattr(self, name, state_dict.get(name, math.nan))


def compute_dtype(trainer: L.Trainer) -> torch.dtype:
    """The dtype of the large matrix products under the Trainer's precision."""
    precision = str(trainer.precision)
    if precision.startswith("bf16"):
        return torch.bfloat16
    return torch.float16 if precision.startswith("16") else torch.float32


@cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Peak FLOP/s of one device; 0 where it is not known."""
    if device.type != "cpu":
        return float(get_available_flops(device, dtype) or 0)
    # Where bfloat16 is emulated it is hundreds of times slower than float32, and not what the processor could do.
    fastest = max((dtype, torch.float32), key=lambda one: product_rate(256, one))
    return product_rate(1024, fastest)


def product_rate(size: int, dtype: torch.dtype) -> float:
    """FLOP/s of the best of four products of square matrices on the CPU."""
    a, b = (torch.ones(size, size, dtype=dtype) for _ in range(2))  # random ones would be drawn from training
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
