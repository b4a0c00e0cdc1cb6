"""A Trainer that only records which blocks it is given."""

from pathlib import Path

import lightning as L
import torch

from lrtrain.data.datamodule import TokenDataModule


class Recorder(L.LightningModule):
    """A model that learns nothing and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, ...]] = []

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        self.seen += [tuple(row) for row in batch.tolist()]
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, data: TokenDataModule, steps: int, checkpoint: str | None = None) -> Recorder:
    model = Recorder()
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=False)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return model
