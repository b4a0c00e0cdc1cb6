"""The share of a training step that is spent waiting for data, through the real loader and the Trainer.

Quickstart as shipped, and S (dense) at its block size of 2048 with a micro-batch that fits a CPU. Waiting is what
Lightning's profiler measures around the loader's `next`; the first batches, when worker processes start, are left out.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import command_line, report
from benchmarks.runs import TRAINING_BATCH, Durations, recipe, stdlib_shards

NEXT = "[_TrainingEpochLoop].train_dataloader_next"
MOST_SHARE = 0.01
WARMUP = 2


def measure(name: str, size: str, vocab_size: int, batches: int, **settings: Any) -> dict[str, Any]:
    """Trains some micro-batches of a recipe; the row of its waiting times."""
    with tempfile.TemporaryDirectory() as runs:
        cli = recipe(
            name,
            Path(runs),
            data__path=stdlib_shards(vocab_size),
            data__prepare=None,
            trainer__max_steps=WARMUP + batches,
            trainer__accumulate_grad_batches=1,
            trainer__val_check_interval=10**6,
            trainer__num_sanity_val_steps=0,
            **settings,
        )
        cli.trainer.profiler = durations = Durations()
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    kept = slice(WARMUP, WARMUP + batches)
    waits, steps = (durations.recorded_durations[action][kept] for action in (NEXT, TRAINING_BATCH))
    share = sum(waits) / (sum(waits) + sum(steps))
    return {
        "size": size,
        "block": cli.datamodule.block_size,
        "micro-batch": cli.datamodule.batch_size,
        "workers": cli.datamodule.num_workers,
        "batches": len(steps),
        "step s": statistics.median(steps),
        "median wait ms": 1e3 * statistics.median(waits),
        "longest wait ms": 1e3 * max(waits),
        "share %": 100 * share,
        "required": f"≤ {MOST_SHARE:.0%}",
        "met": share <= MOST_SHARE,
    }


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--batches", type=int, default=100, help="micro-batches of quickstart; S takes a tenth [100]")
    parser.add_argument(
        "--micro-batch", type=int, default=1, help="sequences of S's micro-batch; the recipe has 16 [1]"
    )
    args = parser.parse_args()
    rows = [
        measure("quickstart", "quickstart", 4096, args.batches),
        measure("dense_S", "S", 32000, max(3, args.batches // 10), data__batch_size=args.micro_batch),
    ]
    report(rows, "data_wait", args.out)


if __name__ == "__main__":
    main()
