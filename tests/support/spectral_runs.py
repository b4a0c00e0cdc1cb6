"""Small language models of every kind of projection, and a Trainer with all that may disturb a constraint."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import AdamW
from torch.utils.data import DataLoader

from lrtrain.nn import Decoder, LowRankLinear, SpectralLinear
from lrtrain.optim import LoRAMuon, Optimizers, Spectron, WarmupCosine
from lrtrain.training.causal_lm import CausalLM

VOCAB, STEPS, ACCUMULATE = 50, 6, 2
LOW_RANK, SPECTRAL = partial(LowRankLinear, rank_ratio=0.25), partial(SpectralLinear, rank_ratio=0.25)
SPECTRON, ADAMW = partial(Spectron, lr=0.1), partial(AdamW, lr=0.01)
LORA_MUON = partial(LoRAMuon, lr=0.1, weight_decay=0.1)
KINDS = {
    "low-rank": (LOW_RANK, LOW_RANK, Optimizers(hidden=SPECTRON, other=ADAMW)),
    "spectral": (SPECTRAL, SPECTRAL, Optimizers(hidden=ADAMW, other=ADAMW)),
    "mixed": (LOW_RANK, SPECTRAL, Optimizers(hidden=SPECTRON, other=ADAMW, overrides={"*.mlp.*": ADAMW})),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def language_model(kind: str, optimizers: Optimizers | None = None) -> CausalLM:
    attention, mlp, usual = KINDS[kind]
    decoder = partial(Decoder, VOCAB, 32, 2, 2, 48, attention=attention, mlp=mlp)
    torch.manual_seed(5)
    return CausalLM(decoder, optimizers or usual, partial(WarmupCosine, warmup=0.3))


def batches(count: int = STEPS * ACCUMULATE) -> DataLoader:
    data = torch.randint(0, VOCAB, (4 * count, 9), generator=torch.Generator().manual_seed(1))
    return DataLoader(data, batch_size=4)  # type: ignore[arg-type]


def trainer(folder: Path, callbacks: list[L.Callback], **changes: Any) -> L.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "precision": "bf16-mixed",
        "max_steps": STEPS,
        "accumulate_grad_batches": ACCUMULATE,
        "gradient_clip_val": 1.0,
        "val_check_interval": 3,
        "limit_val_batches": 1,
        "log_every_n_steps": 1,
        "logger": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(default_root_dir=folder, callbacks=callbacks, **{**settings, **changes})


def every_step(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
