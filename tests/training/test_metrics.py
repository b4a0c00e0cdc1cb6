"""Loss, perplexity and bits per byte over batches of unequal size, and as a Trainer logs them."""

import math
from functools import partial
from itertools import pairwise
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
from lrtrain.training.token_loss import TokenLoss, by_position, summary


def test_the_mean_weighs_every_token_alike() -> None:
    losses = torch.rand(100, dtype=torch.float64)
    metric = TokenLoss()
    for part in losses.split([1, 60, 39]):
        metric.update(part.mean(), len(part))
    assert float(metric.compute()[0]) == pytest.approx(float(losses.mean()), rel=1e-12)


def test_the_sums_stay_exact_over_a_large_held_out_set() -> None:
    metric = TokenLoss()
    metric.nll[0, -1] += 3e8
    metric.tokens[0, -1] += 1e8
    metric.update(torch.tensor(4.0), 1)
    assert float(metric.nll.sum()) == 3e8 + 4
    assert float(metric.tokens.sum()) == 1e8 + 1


def test_perplexity_and_bits_per_byte_follow_from_the_loss() -> None:
    metric = TokenLoss()
    metric.update(torch.tensor(math.log(16)), 10)
    assert summary(float(metric.compute()[0]), None) == pytest.approx({"loss": math.log(16), "perplexity": 16})
    # 16 equally likely tokens are 4 bits a token; two bytes a token make 2 bits a byte.
    assert summary(float(metric.compute()[0]), 2.0)["bits_per_byte"] == pytest.approx(2)
    metric.reset()
    metric.update(torch.tensor(1e6), 1)
    assert math.isfinite(summary(float(metric.compute()[0]), None)["perplexity"])


def test_losses_by_position_are_kept_in_intervals_that_widen() -> None:
    metric = TokenLoss(2)
    for length in (40, 5):
        metric.update(torch.arange(float(length)), 3 * length, 1)
    mean, losses, tokens = metric.compute()
    assert float(mean[1]) == pytest.approx((sum(range(40)) + sum(range(5))) / 45)
    assert math.isnan(float(mean[0]))
    assert by_position(losses[0].tolist(), tokens[0].tolist(), metric.longest) == []
    rows = by_position(losses[1].tolist(), tokens[1].tolist(), metric.longest)
    places = [(row["first"], row["last"]) for row in rows]
    assert places[:5] == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]
    assert [(b["first"], a["last"] + 1) for a, b in pairwise(rows)] == [(b["first"],) * 2 for b in rows[1:]]
    assert places[-1][1] == 39
    for row in rows:
        inside = [float(p) for p in range(int(row["first"]), int(row["last"]) + 1) for _ in range(1 + (p < 5))]
        assert (row["loss"], row["tokens"]) == pytest.approx((sum(inside) / len(inside), 3 * len(inside)))


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
