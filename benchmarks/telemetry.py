"""What the telemetry costs: seconds of one measurement, and its share of training time at the default interval.

A short run measures every second step, so that steps with and without take turns. The cost is the time of the
callback's hooks in the steps that it measures: the probe's forward pass, the copies, the figures and their way into the
run's spool. The share is that cost over the time of the default interval's steps.
"""

import tempfile
from inspect import signature
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import command_line, report
from benchmarks.runs import ROOT, TRAINING_BATCH, Durations, recipe, stdlib_shards
from lrtrain.training.callbacks.spectral_telemetry import SpectralTelemetry

MOST_SHARE = 0.02
EVERY = 2
WARMUP = 2
"""Steps left out: the first measurement makes what later ones find."""

KINDS = {"low-rank": None, "dense": "dense", "spectral": "sct_reference"}
"""Kind of the projections -> the overlay of the recipe that makes them."""

CALLBACK = "[Callback]SpectralTelemetry"
HOOKS = ("on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end")


def run(name: str, overlay: str | None, steps: int, runs: Path, settings: dict[str, Any]) -> Durations:
    """Trains for some steps, and returns what Lightning timed."""
    durations = Durations()
    more = {} if overlay is None else {"config": ROOT / "configs" / "methods" / f"{overlay}.yaml"}
    cli = recipe(
        name,
        runs,
        **more,
        data__num_workers=0,
        trainer__max_steps=steps,
        trainer__accumulate_grad_batches=1,
        trainer__val_check_interval=10**6,
        trainer__num_sanity_val_steps=0,
        trainer__log_every_n_steps=10**6,
        trainer__enable_progress_bar="false",
        trainer__callbacks="[{class_path: lrtrain.training.SpectralTelemetry, "
        f"init_args: {{every_n_steps: {EVERY}}}}}]",
        **settings,
    )
    cli.trainer.profiler = durations
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return durations


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--recipe", default="quickstart", help="name of a recipe in configs [quickstart]")
    parser.add_argument("--vocabulary", type=int, default=4096, help="tokens of the recipe's vocabulary [4096]")
    parser.add_argument("--steps", type=int, default=16, help="optimizer steps of each kind [16]")
    parser.add_argument("--batch", type=int, help="sequences of a step [the recipe's]")
    parser.add_argument("--block", type=int, help="tokens of a sequence [the recipe's]")
    args = parser.parse_args()
    settings = {"data__path": stdlib_shards(args.vocabulary), "data__prepare": None}
    settings |= {"data__batch_size": args.batch} if args.batch else {}
    settings |= {"data__block_size": args.block} if args.block else {}
    interval = signature(SpectralTelemetry).parameters["every_n_steps"].default
    rows = []
    for kind, overlay in KINDS.items():
        with tempfile.TemporaryDirectory() as runs:
            durations = run(args.recipe, overlay, args.steps, Path(runs), settings).recorded_durations
        batches = durations[TRAINING_BATCH]
        hooks = [durations[f"{CALLBACK}.{hook}"] for hook in HOOKS]
        measured = range(WARMUP + EVERY - 1, args.steps, EVERY)
        cost = median(sum(hook[step] for hook in hooks) for step in measured)
        # A step's last hook comes after what Lightning times as the batch.
        plain = median(batches[step] for step in range(WARMUP, args.steps, EVERY))
        share = cost / (interval * plain)
        rows.append(
            {
                "projections": kind,
                "step s": plain,
                "measuring step s": median(batches[s] + hooks[0][s] + hooks[2][s] for s in measured),
                "measurement s": cost,
                f"share at {interval} %": 100 * share,
                "required": f"≤ {MOST_SHARE:.0%}",
                "met": share <= MOST_SHARE,
            }
        )
    report(rows, "telemetry", args.out, recipe=args.recipe)


if __name__ == "__main__":
    main()
