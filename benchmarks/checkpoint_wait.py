"""How long training stands still for a checkpoint: written at once, and written in the background.

A model that is large for what a step computes, under AdamW. Runs of both kinds in alternation; the seconds that the
saves in mid-run took (a run always waits for its last one), beside the time of the copy to host memory alone and what a
step takes while nothing is written and right after a save. A save waits for the one before: the steps between two must
take longer than a write.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers.logger import DummyLogger

from benchmarks.measure import command_line, report
from benchmarks.runs import TRAINING_BATCH, Durations
from lrtrain.checkpoint.background import on_host
from lrtrain.checkpoint.checkpoints import Checkpoints

EVERY = 60
MOST = 1.5


class Large(L.LightningModule):
    """Matrices of which a step uses a row each: AdamW moves all of it."""

    def __init__(self, parameters: int, matrices: int = 16) -> None:
        super().__init__()
        rows = parameters // matrices // 1024
        self.matrices = torch.nn.ParameterList(torch.randn(rows, 1024) for _ in range(matrices))

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return torch.stack([matrix[index % len(matrix)].square().sum() for matrix in self.matrices]).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), fused=True)


class Still(DummyLogger):
    """Keeps what each save logs."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def log_metrics(self, metrics: dict[str, float], *_: Any, **__: Any) -> None:
        self.seconds += [value for name, value in metrics.items() if name == "checkpoint/seconds"]


def measure(asynchronous: bool, saves: int, parameters: int) -> dict[str, list[float]]:
    """One run: seconds of standing still for each save, of the copy alone, of steps; MB of a checkpoint."""
    model, still, durations = Large(parameters), Still(), Durations()
    with tempfile.TemporaryDirectory() as root:
        trainer = L.Trainer(
            default_root_dir=root,
            max_steps=EVERY * saves + 4,
            logger=still,
            callbacks=[Checkpoints(every_n_steps=EVERY, keep=1, asynchronous=asynchronous)],
            profiler=durations,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(model, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(10**4))))
        size = sum(file.stat().st_size for file in Path(root, "checkpoints").iterdir())
        state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    copies = []
    for _ in range(5):
        began = time.perf_counter()
        on_host(state, [])
        copies.append(time.perf_counter() - began)
    steps = list(enumerate(durations.recorded_durations[TRAINING_BATCH]))[EVERY:]
    return {
        "still": still.seconds[:saves],
        "copy": copies,
        "after a save": [step for index, step in steps if index % EVERY < 3],
        "step": [step for index, step in steps if index % EVERY >= EVERY - 3],
        "MB": [size / 1e6],
    }


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--parameters", type=int, default=32 * 2**20, help="of the model [33554432]")
    parser.add_argument("--saves", type=int, default=3, help="checkpoints of a run [3]")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind [3]")
    args = parser.parse_args()
    runs: dict[bool, list[dict[str, list[float]]]] = {False: [], True: []}
    for _ in range(args.repeats):
        for kind, found in runs.items():
            found.append(measure(kind, args.saves, args.parameters))
    median = {
        kind: {name: statistics.median([value for run in found for value in run[name]]) for name in found[0]}
        for kind, found in runs.items()
    }
    rows = [
        {
            "written": "in the background" if kind else "at once",
            "MB": found["MB"],
            "still s": found["still"],
            "copy s": found["copy"],
            "step s": found["step"],
            "after a save s": found["after a save"],
            "ratio": found["still"] / found["copy"],
            "required": f"≤ {MOST}" if kind else "",
            "met": found["still"] <= MOST * found["copy"] if kind else "",
        }
        for kind, found in median.items()
    ]
    times = median[False]["still"] / median[True]["still"]
    report(rows, "checkpoint_wait", args.out, standing_still=f"{times:.1f} times shorter in the background")


if __name__ == "__main__":
    main()
