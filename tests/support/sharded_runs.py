"""Training the small models of `spectral_runs` on any number of processes, on the same global batches."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor
from torch.distributed.tensor import DTensor

import spectral_runs
from lrtrain.checkpoint.checkpoints import Checkpoints
from lrtrain.optim import Optimizers
from lrtrain.training.callbacks.spectral_constraints import SpectralConstraints
from lrtrain.training.callbacks.spectral_telemetry import SpectralTelemetry
from lrtrain.training.causal_lm import CausalLM
from lrtrain.training.fsdp import FSDP
from spectral_runs import ADAMW, LORA_MUON, VOCAB

ROWS = 4  # of a global batch: one for each of up to four processes
STRATEGIES = {
    "single": partial(SingleDeviceStrategy, device="cpu"),
    "ddp": DDPStrategy,
    "fsdp": FSDP,
    "hsdp": partial(FSDP, shards=2, replicas=2),
}


class Losses(L.Callback):
    """Loss and gradient norm (before clipping) of each global batch, and what was there when training began."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.restored: dict[str, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.restored = gathered(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if "train/loss" in trainer.callback_metrics:  # the first of several micro-batches has none yet
            self.losses.append(float(trainer.callback_metrics["train/loss"]))
            self.norms.append(float(trainer.callback_metrics["train/gradient_norm"]))


class Share:
    """This process's rows of each global batch; whatever the number of processes, the batches are the same."""

    def __init__(self, trainer: L.Trainer, steps: int) -> None:
        rows = torch.randint(0, VOCAB, (steps, ROWS, 9), generator=torch.Generator().manual_seed(1))
        self.batches = rows
        self.trainer = trainer

    def __iter__(self) -> Iterator[Tensor]:
        for rows in self.batches:
            yield rows[self.trainer.global_rank :: self.trainer.world_size]


def model_of(kind: str, **options: Any) -> CausalLM:
    """A model of `spectral_runs.KINDS`; `mixed, adamw` has that kind's weights and AdamW for the projections."""
    kind, _, optimizer = kind.partition(", ")
    hidden = {"adamw": ADAMW, "lora-muon": LORA_MUON}
    model = spectral_runs.language_model(kind, Optimizers(hidden[optimizer], ADAMW) if optimizer else None)
    model._activation_checkpointing = options.get("activation_checkpointing", False)
    model._compile = options.get("compile")
    return model


def run(
    root: Path, kind: str, strategy: str, steps: int, ckpt_path: Path | None = None, **options: Any
) -> dict[str, Any]:
    """Trains until a step and returns losses, the state that training began with and the state at the end."""
    made: Strategy = STRATEGIES[strategy]()
    model = model_of(kind, **options.pop("model", {}))
    losses = Losses()
    telemetry = SpectralTelemetry(every_n_steps=2)
    trainer = spectral_runs.trainer(
        root,
        [losses, telemetry, Checkpoints(every_n_steps=options.pop("every", 1000))],
        strategy=made,
        devices=int(os.environ.get("WORLD_SIZE", "1")),
        max_steps=steps,
        accumulate_grad_batches=options.pop("accumulate", 1),
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=True,
        **{"precision": "32-true", **options},
    )
    trainer.fit(model, Share(trainer, 40), ckpt_path=ckpt_path)
    measured = telemetry.measured
    states = {"restored": losses.restored, "end": gathered(trainer)}
    return {"losses": losses.losses, "norms": losses.norms, "measured": measured, **states}


def gathered(trainer: L.Trainer) -> dict[str, Any]:
    """Whole weights by name, and whole optimizer states by parameter name."""
    model, optimizer = trainer.lightning_module, trainer.optimizers[0]
    weights = {name: _whole(p) for name, p in model.named_parameters()}
    states = {
        name: {key: _whole(value) for key, value in optimizer.state[p].items()}
        for group in optimizer.param_groups
        for name, p in zip(group["param_names"], group["params"], strict=True)
    }
    (constraints,) = (c for c in trainer.callbacks if isinstance(c, SpectralConstraints))  # type: ignore[attr-defined]
    return {"weights": weights, "states": states, "constraints": copied(constraints.state_dict())}


def copied(state: Any) -> Any:
    """Nested dictionaries with whole tensors that nothing changes any more."""
    return {key: copied(value) for key, value in state.items()} if isinstance(state, dict) else _whole(state)


def _whole(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
