"""A run's length in epochs becomes steps: none ends in a step, none moves the data, and plan counts what fit trains."""

from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch.optim import SGD

import toy
from lrtrain.data.datamodule import TokenDataModule
from lrtrain.data.run_length import count_in_steps
from lrtrain.nn import Decoder, DenseLinear
from lrtrain.optim import Optimizers, WarmupCosine
from lrtrain.runtime.errors import UserError
from lrtrain.training.callbacks.throughput import Throughput
from lrtrain.training.causal_lm import CausalLM


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


class Moments(L.Callback):
    """The first tokens of every micro-batch, and the micro-batches that each step and each validation came after."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.steps: list[int] = []
        self.validations: list[int] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: torch.Tensor, index: int) -> None:
        self.seen += batch[:, :8].tolist()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step > len(self.steps):
            self.steps.append(trainer.fit_loop.total_batch_idx + 1)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.validations.append(trainer.fit_loop.total_batch_idx + 1)


class Stop(L.Callback):
    """Saves a checkpoint after some steps, at the step's end, and ends the run."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.steps:
            trainer.save_checkpoint(Path(trainer.default_root_dir, "begun.ckpt"))
            trainer.should_stop = True


def trained(
    root: Path, data: L.LightningDataModule, checkpoint: Path | None = None, callbacks: Any = (), **options: Any
) -> tuple[L.Trainer, CausalLM, Moments]:
    torch.manual_seed(0)
    decoder = partial(Decoder, toy.VOCABULARY, 16, 1, 2, 32, DenseLinear, DenseLinear, embedding_std=1.0)
    optimizer = partial(SGD, lr=0.1)
    model = CausalLM(decoder, Optimizers(optimizer, optimizer), partial(WarmupCosine, warmup=0.1))
    moments = Moments()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=root,
        callbacks=[moments, Throughput(), *callbacks],
        enable_checkpointing=False,
        **{"num_sanity_val_steps": 0, "limit_val_batches": 1, **quiet, **options},
    )
    trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=False)
    return trainer, model, moments


def data_of(shards: Path, batch_size: int = 64) -> TokenDataModule:
    return TokenDataModule(str(shards), toy.BLOCK, batch_size)


def blocks_in(shards: Path) -> int:
    return data_of(shards).manifest.train.blocks(toy.BLOCK + 1)


@pytest.mark.parametrize("accumulate", [1, 3, 16])
def test_every_step_has_all_its_micro_batches_also_where_epochs_meet(
    shards: Path, tmp_path: Path, accumulate: int
) -> None:
    steps = 20 // accumulate + 1
    trainer, _, moments = trained(tmp_path, data_of(shards), max_steps=steps, accumulate_grad_batches=accumulate)
    assert blocks_in(shards) < 64 * accumulate * steps  # more than an epoch
    assert moments.steps == [accumulate * (step + 1) for step in range(steps)]
    (throughput,) = (c for c in trainer.callbacks if isinstance(c, Throughput))  # type: ignore[attr-defined]
    assert throughput.tokens_seen == steps * accumulate * 64 * toy.BLOCK  # as plan counts


def test_a_step_of_several_micro_batches_is_one_of_a_large_batch_also_where_epochs_meet(
    shards: Path, tmp_path: Path
) -> None:
    per_epoch = Fraction(blocks_in(shards), 256)
    assert per_epoch.denominator > 1
    steps = int(2 * per_epoch) + 1
    _, small, several = trained(tmp_path, data_of(shards, 64), max_steps=steps, accumulate_grad_batches=4)
    _, large, one = trained(tmp_path, data_of(shards, 256), max_steps=steps)
    assert several.seen == one.seen
    torch.testing.assert_close(small.state_dict(), large.state_dict(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("first", [{"max_epochs": 2}, {"max_steps": 20}], ids=["epochs", "steps"])
@pytest.mark.parametrize("then", [{"max_epochs": 2}, {"max_steps": 20, "max_epochs": 2}], ids=["epochs", "both"])
def test_a_run_of_epochs_goes_on_with_the_very_next_blocks(
    shards: Path, tmp_path: Path, first: dict[str, int], then: dict[str, int]
) -> None:
    whole, _, everything = trained(tmp_path, data_of(shards), **then)
    length = 2 * blocks_in(shards) // 64
    assert whole.global_step == min(length, then.get("max_steps", length))
    for stop in (3, blocks_in(shards) // 64, blocks_in(shards) // 64 + 1):
        _, _, begun = trained(tmp_path, data_of(shards), callbacks=[Stop(stop)], **first)
        again, _, rest = trained(tmp_path, data_of(shards), tmp_path / "begun.ckpt", **then)
        assert begun.seen == everything.seen[: 64 * stop]
        assert rest.seen == everything.seen[64 * stop :]
        assert again.global_step == whole.global_step


@pytest.mark.parametrize(
    ("options", "validations"),
    [
        ({"val_check_interval": 0.5}, [5, 10, 15, 20]),
        ({}, [10, 20]),
        ({"check_val_every_n_epoch": 2}, [20]),
        ({"val_check_interval": 7}, [7, 14]),
        ({"val_check_interval": 7, "check_val_every_n_epoch": None, "limit_train_batches": 3}, []),
        ({"limit_train_batches": 4}, [4, 8]),
        ({"limit_train_batches": 0.5}, [5, 10]),
        ({"accumulate_grad_batches": 4}, [10, 20]),
    ],
)
def test_a_share_of_an_epoch_is_a_number_of_micro_batches(
    shards: Path, tmp_path: Path, options: dict[str, Any], validations: list[int]
) -> None:
    batch = blocks_in(shards) // 10
    assert blocks_in(shards) % batch
    trainer, _, moments = trained(tmp_path, data_of(shards, batch), max_epochs=2, **options)
    assert moments.validations[: len(validations)] == validations
    epoch = {4: 4, 3: 3, 0.5: 5}.get(options.get("limit_train_batches"), 10)
    assert trainer.global_step == 2 * epoch // options.get("accumulate_grad_batches", 1)
    assert len(moments.seen) == trainer.global_step * batch * options.get("accumulate_grad_batches", 1)


def test_the_epoch_that_is_logged_is_the_share_of_the_data_that_was_read(shards: Path, tmp_path: Path) -> None:
    trainer, _, _ = trained(tmp_path, data_of(shards), max_steps=7, log_every_n_steps=7)
    assert float(trainer.callback_metrics["epoch"]) == pytest.approx(7 * 64 / blocks_in(shards))
    trainer, _, moments = trained(tmp_path, data_of(shards), max_steps=7, val_check_interval=3, limit_train_batches=2)
    assert moments.validations[:2] == [3, 6]
    assert float(trainer.callback_metrics["epoch"]) in (3.0, 3.5)


def test_a_callback_that_waits_for_an_epochs_end_waits_for_validation(shards: Path, tmp_path: Path) -> None:
    stop = EarlyStopping("val/loss", patience=1, min_delta=10.0)
    trainer, _, moments = trained(tmp_path, data_of(shards), callbacks=[stop], max_epochs=50)
    assert trainer.global_step == moments.validations[1]


def test_overfitting_reads_the_same_blocks_again_and_goes_on_with_them(shards: Path, tmp_path: Path) -> None:
    for stop in (5, 10):
        trainer, _, moments = trained(
            tmp_path,
            data_of(shards),
            tmp_path / "begun.ckpt" if stop == 10 else None,
            max_steps=stop,
            overfit_batches=2,
        )
        trainer.save_checkpoint(tmp_path / "begun.ckpt")
        passes = [moments.seen[start : start + 128] for start in range(0, len(moments.seen) - 127, 128)]
        assert len(moments.seen) == 5 * 64
        if stop == 5:
            whole = sorted(passes[0])
            assert sorted(passes[1]) == whole != passes[1]
        else:
            assert sorted(moments.seen[64:192]) == sorted(moments.seen[192:]) == whole


def test_fast_dev_run_is_a_number_of_steps(shards: Path, tmp_path: Path) -> None:
    _, _, moments = trained(tmp_path, data_of(shards), fast_dev_run=2, accumulate_grad_batches=4)
    assert moments.steps == [4, 8]


def test_min_epochs_holds_back_who_would_stop(tmp_path: Path) -> None:
    trainer = L.Trainer(max_epochs=9, min_epochs=2, accelerator="cpu", logger=False, default_root_dir=tmp_path)
    assert count_in_steps(trainer, Fraction(15, 2)) == Fraction(15, 2)
    assert (trainer.min_steps, trainer.max_steps, trainer.val_check_interval) == (15, 67, 7)
    trainer.check_val_every_n_epoch = 3
    with pytest.raises(UserError, match="give the latter alone"):
        count_in_steps(trainer, Fraction(7))


class OwnLoader:
    """Seven batches an epoch, each a function of its number; the state is how many there were."""

    def __init__(self) -> None:
        self.given = 0

    def __len__(self) -> int:
        return 7

    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            self.given += 1
            generator = torch.Generator().manual_seed(self.given)
            yield torch.randint(toy.VOCABULARY, (2, toy.BLOCK + 1), generator=generator)
            if self.given % 7 == 0:
                return

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given = state["given"]


class OwnData(L.LightningDataModule):
    def train_dataloader(self) -> OwnLoader:
        return OwnLoader()


@pytest.mark.parametrize("stop", [3, 7, 9])
def test_an_own_loader_with_a_state_goes_on_in_a_run_of_epochs(tmp_path: Path, stop: int) -> None:
    _, _, everything = trained(tmp_path, OwnData(), max_epochs=3)
    _, _, begun = trained(tmp_path, OwnData(), max_epochs=3, callbacks=[Stop(stop)])
    trainer, _, rest = trained(tmp_path, OwnData(), tmp_path / "begun.ckpt", max_epochs=3)
    assert trainer.global_step == 21
    assert begun.seen + rest.seen == everything.seen


def test_an_own_loader_whose_epochs_end_in_a_step_gets_a_line(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="epoch of 7 micro-batches ends with a step of 3 instead of 4"):
        trainer, _, moments = trained(tmp_path, OwnData(), max_steps=3, accumulate_grad_batches=4, log_every_n_steps=1)
    assert moments.steps == [4, 7, 11]
    assert float(trainer.callback_metrics["throughput/tokens_seen"]) == 11 * 2 * toy.BLOCK
