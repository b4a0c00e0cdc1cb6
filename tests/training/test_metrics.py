"""Loss, perplexity and bits per byte over batches of unequal size, and as a Trainer logs them."""

import math
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch.optim import AdamW
from torch.utils.data import DataLoader

from lrtrain.nn import Decoder, DenseLinear
from lrtrain.optim import Optimizers, WarmupCosine
from lrtrain.training.causal_lm import CausalLM
from lrtrain.training.token_loss import TokenLoss, summary


def test_the_mean_weighs_every_token_alike() -> None:
    losses = torch.rand(100, dtype=torch.float64)
    metric = TokenLoss()
    for part in losses.split([1, 60, 39]):
        metric.update(part.mean(), len(part))
    assert float(metric.compute()) == pytest.approx(float(losses.mean()), rel=1e-12)


def test_the_sums_stay_exact_over_a_large_held_out_set() -> None:
    metric = TokenLoss()
    metric.nll += 3e8
    metric.tokens += 1e8
    metric.update(torch.tensor(4.0), 1)
    assert float(metric.nll) == 3e8 + 4
    assert float(metric.tokens) == 1e8 + 1


def test_perplexity_and_bits_per_byte_follow_from_the_loss() -> None:
    metric = TokenLoss()
    metric.update(torch.tensor(math.log(16)), 10)
    assert summary(float(metric.compute()), None) == pytest.approx({"loss": math.log(16), "perplexity": 16})
    # 16 equally likely tokens are 4 bits a token; two bytes a token make 2 bits a byte.
    assert summary(float(metric.compute()), 2.0)["bits_per_byte"] == pytest.approx(2)
    metric.reset()
    metric.update(torch.tensor(1e6), 1)
    assert math.isfinite(summary(float(metric.compute()), None)["perplexity"])


def test_a_checkpoint_holds_no_metric_state() -> None:
    assert not TokenLoss().state_dict()


def test_the_trainer_logs_the_mean_over_all_held_out_tokens(tmp_path: Path) -> None:
    decoder = partial(Decoder, 50, 16, 1, 2, 32, DenseLinear, DenseLinear, embedding_std=1.0)
    model = CausalLM(decoder, Optimizers(AdamW, AdamW), partial(WarmupCosine, warmup=0.1))
    data = torch.randint(0, 50, (7, 9))
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    (logged,) = trainer.validate(model, DataLoader(data, batch_size=3), verbose=False)  # type: ignore[arg-type]
    with torch.no_grad():
        expected = F.cross_entropy(model(data[:, :-1]).flatten(0, 1), data[:, 1:].flatten())
    assert logged["val/loss"] == pytest.approx(float(expected), rel=1e-5)
    assert logged["val/perplexity"] == pytest.approx(float(expected.exp()), rel=1e-4)
    assert "val/bits_per_byte" not in logged
