"""Shipped recipes as real runs, on text that every machine has: Python's own standard library."""

from pathlib import Path
from typing import Any

from lightning.pytorch.profilers import SimpleProfiler

TRAINING_BATCH = "run_training_batch"
"""Lightning's name for a micro-batch: forward, backward and, where one is due, the optimizer step."""

ROOT = Path(__file__).parent.parent
DATA = ROOT / "data"


def stdlib_shards(vocab_size: int) -> Path:
    """The shards of the standard library's text in `data/stdlib-<vocab_size>`, prepared on first use."""
    from lrtrain.data.manifest import MANIFEST
    from lrtrain.data.preparation import PrepareSpec, prepare

    folder = DATA / f"stdlib-{vocab_size}"
    if not (folder / MANIFEST).exists():
        prepare(PrepareSpec(source=["stdlib"], train_vocab_size=vocab_size), str(folder))
    return folder


def recipe(name: str, runs: Path, **settings: Any) -> Any:
    """`lrtrain fit --config configs/<name>.yaml` up to where training begins: its Trainer, model and data.

    Args:
        name: Of the recipe.
        runs: Folder of the runs.
        settings: Further options, `__` for the dots: `trainer__max_steps=8`.
    """
    from lrtrain.config.train_parser import TrainingRun
    from lrtrain.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    options = [f"--{key.replace('__', '.')}={'null' if value is None else value}" for key, value in settings.items()]
    return TrainingRun("fit", ["--config", str(ROOT / "configs" / f"{name}.yaml"), f"--runs={runs}", *options])


class Durations(SimpleProfiler):
    """`recorded_durations` of whatever Lightning times, by its name for it, without the table at the end."""

    def describe(self) -> None:
        pass
