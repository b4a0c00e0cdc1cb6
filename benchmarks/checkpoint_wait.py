"""How long training stands still for a checkpoint: written at once, and written in the background.

Quickstart four times as wide with a small micro-batch: a large checkpoint, and steps that take little time. Runs of
both kinds in alternation; `checkpoint/seconds` of their records without the last save, which a run always waits for.
Beside it the time of the copy to host memory alone, and what a step takes right after a save and later.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import command_line, report
from benchmarks.runs import TRAINING_BATCH, Durations, recipe, stdlib_shards
from lrtrain.checkpoint.background import on_host

EVERY = 10
MOST = 1.5


def measure(asynchronous: bool, saves: int) -> dict[str, Any]:
    """One run: seconds of standing still per checkpoint, steps, the copy alone, bytes of a checkpoint."""
    with tempfile.TemporaryDirectory() as runs:
        cli = recipe(
            "quickstart",
            Path(runs),
            data__path=stdlib_shards(4096),
            data__prepare=None,
            data__batch_size=1,
            data__block_size=64,
            model__decoder__width=1024,
            model__decoder__heads=16,
            model__decoder__ffn_width=3072,
            trainer__max_steps=EVERY * (saves + 1),
            trainer__accumulate_grad_batches=1,
            trainer__val_check_interval=10**6,
            trainer__limit_val_batches=1,
            trainer__log_every_n_steps=EVERY,
            checkpoints__every_n_steps=EVERY,
            checkpoints__keep=1,
            checkpoints__asynchronous=str(asynchronous).lower(),
        )
        cli.trainer.profiler = durations = Durations()
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
        record = Path(cli.run_dir, "metrics.jsonl").read_text().splitlines()
        points = [json.loads(line).get("metrics", {}).get("checkpoint/seconds") for line in record]
        size = sum(file.stat().st_size for file in Path(cli.run_dir, "checkpoints").iterdir())
        state = cli.trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        copies = []
        for _ in range(5):
            began = time.perf_counter()
            on_host(state, [])
            copies.append(time.perf_counter() - began)
    steps = durations.recorded_durations[TRAINING_BATCH]
    return {
        "still": [point for point in points if point is not None][:saves],
        "steps after a save": [step for i, step in enumerate(steps) if i >= EVERY and i % EVERY < EVERY // 2],
        "steps": [step for i, step in enumerate(steps) if i >= EVERY and i % EVERY >= EVERY // 2],
        "copy": copies,
        "MB": size / 1e6,
    }


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--saves", type=int, default=3, help="checkpoints of a run [3]")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each kind [2]")
    args = parser.parse_args()
    found: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for _ in range(args.repeats):
        for kind, runs in found.items():
            runs.append(measure(kind, args.saves))
    median = {
        kind: {name: statistics.median([x for run in runs for x in run[name]]) for name in runs[0] if name != "MB"}
        for kind, runs in found.items()
    }
    copy = median[True]["copy"]
    rows = [
        {
            "written": "in the background" if kind else "at once",
            "MB": found[kind][0]["MB"],
            "still s": median[kind]["still"],
            "copy s": copy,
            "step s": median[kind]["steps"],
            "after a save": median[kind]["steps after a save"],
            "ratio": median[kind]["still"] / copy,
            "required": f"≤ {MOST}" if kind else "",
            "met": "" if not kind else median[kind]["still"] <= MOST * copy,
        }
        for kind in found
    ]
    note = f"{median[False]['still'] / median[True]['still']:.1f} times shorter"
    report(rows, "checkpoint_wait", args.out, in_the_background_training_stands_still=note)


if __name__ == "__main__":
    main()
