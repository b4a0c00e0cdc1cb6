"""Every held-out block counts once on any number of processes, also where some have fewer blocks, or none."""

import os
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.optim import AdamW

import toy
from lrtrain.data.datamodule import TokenDataModule
from lrtrain.nn import Decoder, DenseLinear
from lrtrain.optim import Optimizers, WarmupCosine
from lrtrain.training.causal_lm import CausalLM
from ranks import on_ranks
from sharded_runs import STRATEGIES


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


class Counted(L.Callback):
    """How many tokens this process counted, before the processes add theirs up."""

    tokens = 0.0

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: CausalLM) -> None:  # type: ignore[override]
        self.tokens = float(pl_module.validation.tokens.sum())


def figures(shards: Path, strategy: str, batch_sizes: list[int], num_workers: int = 0) -> list[dict[str, float]]:
    """What `validate` says on this process at each batch size, and the number of tokens that it counted."""
    found = []
    for batch_size in batch_sizes:
        torch.manual_seed(0)
        decoder = partial(Decoder, toy.VOCABULARY, 16, 2, 2, 32, DenseLinear, DenseLinear, embedding_std=1.0)
        model = CausalLM(decoder, Optimizers(AdamW, AdamW), partial(WarmupCosine, warmup=0.1))
        counted = Counted()
        trainer = L.Trainer(
            callbacks=[counted],
            accelerator="cpu",
            strategy=STRATEGIES[strategy](),
            devices=int(os.environ.get("WORLD_SIZE", "1")),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        data = TokenDataModule(str(shards), toy.BLOCK, batch_size, num_workers)
        (said,) = trainer.validate(model, datamodule=data, verbose=False)
        found.append({**said, "tokens": counted.tokens})
    return found


@pytest.mark.parametrize(("processes", "strategy"), [(2, "ddp"), (2, "fsdp"), (3, "fsdp")])
def test_validation_counts_every_block_once(shards: Path, processes: int, strategy: str) -> None:
    blocks = TokenDataModule(str(shards), toy.BLOCK).manifest.val.blocks(toy.BLOCK + 1)
    sizes = [blocks // 3 - 1, blocks - 1, blocks, blocks + 9]  # the last process has fewer, one, none, none
    (alone,) = figures(shards, "single", [7])
    assert alone["tokens"] == blocks * toy.BLOCK
    outcomes = on_ranks(processes, figures, shards, strategy, sizes)
    for index in range(len(sizes)):
        for name in ("val/loss", "val/perplexity", "val/bits_per_byte"):
            assert [outcome[index][name] for outcome in outcomes] == pytest.approx([alone[name]] * processes, rel=1e-5)
        assert sum(outcome[index]["tokens"] for outcome in outcomes) == blocks * toy.BLOCK
