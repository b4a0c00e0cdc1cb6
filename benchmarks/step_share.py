"""The share of a training step that Spectron takes at S and 0.5M tokens a step, in time and in FLOPs.

Spectron is what AdamW would not do: the callback (norms before the step) and the update of the factors; what the
telemetry takes is `benchmarks.telemetry`'s. Measured through the Trainer on a few short steps; a step of
0.5M tokens is that many times the median micro-batch plus one such step. FLOPs are those of the products that torch's
counter knows, which leaves the r × r decompositions out.
"""

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import command_line, report
from benchmarks.runs import TRAINING_BATCH, Durations, recipe, stdlib_shards

TOKENS_PER_STEP = 524_288
MOST_SHARE = 0.01
CALLBACK = "[Callback]SpectralConstraints"


class Timed(L.Callback):
    """Seconds of Spectron's part of each optimizer step."""

    def __init__(self) -> None:
        self.update: list[float] = []
        self._started = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        spectron = spectron_of(trainer)
        spectron.register_step_pre_hook(self._start)
        spectron.register_step_post_hook(self._end)

    def _start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self.update.append(time.perf_counter() - self._started)


def spectron_of(trainer: L.Trainer) -> torch.optim.Optimizer:
    """The part of the run's optimizer that is Spectron."""
    parts = trainer.optimizers[0].optimizers  # type: ignore[attr-defined]
    return next(part for part in parts if type(part).__name__ == "Spectron")


def flops(cli: Any, block: int) -> tuple[int, int]:
    """FLOPs of forward and backward on one sequence, and of one constrained Spectron step."""
    tokens = torch.zeros(1, block + 1, dtype=torch.int64)
    with FlopCounterMode(display=False) as training:
        cli.model.loss(tokens).backward()
    constraints = next(c for c in cli.trainer.callbacks if type(c).__name__ == "SpectralConstraints").constraints
    optimizer = spectron_of(cli.trainer)
    with FlopCounterMode(display=False) as stepping:
        for constraint in constraints.values():
            constraint.before_step(optimizer)
        optimizer.step()
    return training.get_total_flops(), stepping.get_total_flops()


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--block", type=int, default=2048, help="tokens of the one sequence of a micro-batch [2048]")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps, of which the first is left out [4]")
    args = parser.parse_args()
    timed, durations = Timed(), Durations()
    with tempfile.TemporaryDirectory() as runs:
        cli = recipe(
            "spectron_S",
            Path(runs),
            data__path=stdlib_shards(32000),
            data__prepare=None,
            data__block_size=args.block,
            data__batch_size=1,
            data__num_workers=0,
            trainer__max_steps=args.steps,
            trainer__accumulate_grad_batches=2,
            trainer__val_check_interval=10**6,
            trainer__num_sanity_val_steps=0,
        )
        cli.trainer.profiler = durations
        cli.trainer.callbacks.append(timed)
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    batch = median(durations.recorded_durations[TRAINING_BATCH][2::2])  # those without an optimizer step
    before = median(durations.recorded_durations[f"{CALLBACK}.on_before_optimizer_step"][1:])
    update = median(timed.update[1:])
    spectron = before + update
    batches = TOKENS_PER_STEP // args.block
    batch_flops, step_flops = flops(cli, args.block)
    rows = []
    for what, training, step, unit in (
        ("time", batch * batches, spectron, "s"),
        ("FLOPs", batch_flops * batches / 1e12, step_flops / 1e12, "TFLOP"),
    ):
        share = step / (training + step)
        rows.append(
            {
                "what": what,
                "unit": unit,
                "micro-batch": training / batches,
                "0.5M tokens": training,
                "Spectron step": step,
                "share %": 100 * share,
                "required": f"≤ {MOST_SHARE:.0%}",
                "met": share <= MOST_SHARE,
            }
        )
    parts = f"norms {before:.3f} s, update {update:.3f} s"
    report(rows, "step_share", args.out, extrapolated=f"{batches} micro-batches of {args.block} tokens", parts=parts)


if __name__ == "__main__":
    main()
