"""Tokens per second, tokens seen and model FLOPs utilisation."""

import time
from functools import cache
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.throughput import get_available_flops


class Throughput(L.Callback):
    """Logs `throughput/tokens_per_second`, `throughput/tokens_seen` and `throughput/mfu` at the Trainer's log interval.

    Time is counted over training batches, waiting for data included and validation left out. Model FLOPs
    utilisation is tokens/s · 3 · forward FLOPs per token / peak FLOP/s of all devices, without recomputation
    (arXiv 2204.02311, appendix B). The peak is the vendor's figure for the compute dtype on a GPU, and on a CPU the
    rate of a large matrix product, measured once.
    """

    def __init__(self) -> None:
        self.tokens_seen = 0
        self.tokens_per_second = 0.0
        self._tokens = 0
        self._seconds = 0.0
        self._last = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        tokens = batch[:, 1:].numel() * trainer.world_size
        now = time.perf_counter()
        self.tokens_seen += tokens
        self._tokens += tokens
        self._seconds += now - self._last
        self._last = now
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not stepped or not every or trainer.global_step % every:
            return
        self._measure()
        flops = 3 * pl_module.decoder.flops_per_token(batch.shape[1] - 1)  # type: ignore[operator, union-attr]
        values: dict[str, float] = {
            "throughput/tokens_per_second": self.tokens_per_second,
            "throughput/tokens_seen": float(self.tokens_seen),
        }
        peak = peak_flops(pl_module.device, compute_dtype(trainer)) * trainer.world_size
        if peak:
            values["throughput/mfu"] = self.tokens_per_second * flops / peak
        pl_module.log_dict(values, rank_zero_only=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._measure()

    def _measure(self) -> None:
        if self._seconds:
            self.tokens_per_second = self._tokens / self._seconds
        self._tokens, self._seconds = 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"tokens_seen": self.tokens_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tokens_seen = state_dict["tokens_seen"]


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
    size = 1024
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
