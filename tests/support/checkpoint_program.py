"""A small training program for the tests of checkpoints: imported there, and run as a process to be signalled."""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from lrtrain.checkpoint.checkpoints import Checkpoints

BATCHES, WIDTH = 10, 8


class Batches:
    """A resumable loader: batch i of epoch e is a function of (e, i); the state is where it stands."""

    def __init__(self, log: Path | None = None) -> None:
        self.epoch, self.index, self.log = 0, 0, log

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[torch.Tensor]:
        if self.index == BATCHES:
            self.epoch, self.index = self.epoch + 1, 0
        while self.index < BATCHES:
            self.index += 1
            seed = 1000 * self.epoch + self.index
            if self.log:
                with self.log.open("a") as log:
                    log.write(f"{seed}\n")
            yield torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(seed))

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "index": self.index}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.index = state["epoch"], state["index"]


class Net(pl.LightningModule):
    """Two layers and dropout, so that the random state matters; AdamW, so that the optimizer state does."""

    def __init__(self, hidden: int = 16, pause: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(WIDTH, hidden), nn.Dropout(0.5), nn.Linear(hidden, WIDTH))
        self.pause = pause

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        time.sleep(self.pause)
        return (self.net(batch) - batch).square().mean()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        time.sleep(self.pause)
        torch.rand(1)  # a validation that draws random numbers must not disturb training

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40),
                "interval": "step",
            },
        }


def make_trainer(
    root: Path, every: int = 1000, keep: int = -1, asynchronous: bool = True, **options: Any
) -> pl.Trainer:
    options.setdefault("callbacks", [])
    options["callbacks"] = [*options["callbacks"], Checkpoints(every, keep, asynchronous)]
    options = {"max_epochs": -1, "num_sanity_val_steps": 0, "accelerator": "cpu", "devices": 1, **options}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(default_root_dir=root, **quiet, **options)


def fit(
    root: Path, build: Callable[[], Net] = Net, ckpt_path: Path | None = None, validate: bool = False, **options: Any
) -> Net:
    """Trains from seed 0, or on from `ckpt_path`; `root/batches.txt` lists the batches that were drawn."""
    root.mkdir(exist_ok=True)
    pl.seed_everything(0, verbose=False)
    net = build()
    loaders = {"train_dataloaders": Batches(root / "batches.txt"), "val_dataloaders": Batches() if validate else None}
    make_trainer(root, **options).fit(net, **loaders, ckpt_path=ckpt_path)
    return net


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--pause", type=float, default=0.02)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--accumulate", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    options: dict[str, Any] = {"devices": args.devices, "accumulate_grad_batches": args.accumulate}
    if args.devices > 1:
        options["strategy"] = "ddp"
    fit(args.root, lambda: Net(pause=args.pause), max_steps=args.steps, **options)


if __name__ == "__main__":
    main()
