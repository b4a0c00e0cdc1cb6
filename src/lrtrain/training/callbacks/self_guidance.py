"""Self-guided training inside a Lightning run: the dense weights fade, and are deleted."""

from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.nn.parallel import DistributedDataParallel

from lrtrain.nn.self_guided import guide, release, self_guided
from lrtrain.optim import remove_parameters
from lrtrain.runtime.errors import UserError
from lrtrain.training.fsdp import FSDP


class SelfGuidance(L.Callback):
    """Sets α(t) = ½(1 + cos(π t / T)) of the self-guided projections, and deletes their dense weights after T steps.

    T = round(share · the run's steps). In step t = 0, 1, … a projection computes α W x + (1 − α) A Bᵀ x, or, with
    probability 1 − α, A Bᵀ x alone: over the guided steps the dense product is made in half of them. After t steps
    validation and checkpoints have α(t); after T steps the dense weights and their optimizer states are gone from
    model, optimizer and checkpoint, which then is a plain low-rank one.

    `CausalLM` attaches this callback where it is needed; name it under `trainer.callbacks` to change it. The α of every
    step, 0 after T, is logged as `spectral/guidance`.

    Args:
        share: Share of the steps that are guided, 0 < share ≤ 1.
        seed: Of the coins that skip dense products.

    Raises:
        UserError: share is out of range, the model has no self-guided projection, or the strategy shards weights or
            does not allow parameters without a gradient.

    Source: arXiv 2406.16450, section 3.
    """

    def __init__(self, share: float = 0.5, seed: int = 0) -> None:
        if not 0 < share <= 1:
            raise UserError(f"trainer.callbacks: SelfGuidance has share: {share}: give a number in (0, 1]")
        self.share = share
        self.seed = seed
        self.alpha = 0.0
        self.guided_steps = 0
        self._prepared = -1

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, FSDP):
            raise UserError(
                "trainer.strategy is FSDP: what it has sharded cannot be deleted, and self-guided projections delete "
                "their dense weights; use trainer.strategy: ddp_find_unused_parameters_true, or one device"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        layers = self_guided(pl_module)
        if not layers:
            raise UserError(
                "trainer.callbacks: SelfGuidance is there, but the model has no self-guided projection; use "
                "lrtrain.nn.SelfGuidedLinear or leave it out"
            )
        self.guided_steps = round(self.share * trainer.estimated_stepping_batches)
        guided = any(layer.W is not None for layer in layers.values())
        model = trainer.strategy.model
        if guided and isinstance(model, DistributedDataParallel) and not model.find_unused_parameters:
            raise UserError(
                "trainer.strategy: self-guided projections skip their dense weights in some steps, which then have no "
                "gradient; use trainer.strategy: ddp_find_unused_parameters_true"
            )
        self._prepare(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._prepared:
            pl_module.log("spectral/guidance", self.alpha, rank_zero_only=True)
            # Before checkpoints and validation, which are to see what the next step begins with.
            self._prepare(trainer, pl_module)

    def _prepare(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Makes the model what it is to be in the next step."""
        self._prepared = trainer.global_step
        self.alpha = guide(pl_module, trainer.global_step, self.guided_steps, self.seed)
        weights = release(pl_module) if trainer.global_step >= self.guided_steps else []
        if not weights:
            return
        for optimizer in trainer.optimizers:
            remove_parameters(optimizer, weights)
        count = sum(weight.numel() for weight in weights)
        rank_zero_info(f"step {trainer.global_step}: {len(weights)} dense weights deleted, {count:,} parameters fewer")
        strategy = trainer.strategy
        if isinstance(strategy, DDPStrategy):
            # The wrapper keeps every parameter that it was made with, and a gradient's place for it.
            strategy.model = pl_module
            strategy.configure_ddp()
