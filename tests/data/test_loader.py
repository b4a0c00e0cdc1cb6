"""The stream of blocks: every one once, shuffled, ranks apart, and resumed exactly."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from forked import FORK
from lrtrain.data.datamodule import TokenDataModule
from ranks import free_port
from recorded_fit import fit
from token_streams import BLOCK, blocks_of, copied, end_workers, module, rows

_end_workers = pytest.fixture(autouse=True)(end_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_validation_covers_every_block_once_and_training_every_whole_batch(prepared: Path, num_workers: int) -> None:
    data = module(prepared, num_workers=num_workers)
    assert sorted(rows(data.val_dataloader())) == sorted(blocks_of(prepared, "val"))
    assert rows(data.test_dataloader()) == rows(data.val_dataloader())
    loader = data.train_dataloader()
    batches = list(loader)
    assert {(batch.shape, batch.dtype) for batch in batches} == {(torch.Size([4, 64]), torch.int64)}
    seen, everything = rows(batches), blocks_of(prepared, "train")
    assert len(batches) == len(loader) == len(everything) // 4
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(everything)


def test_validation_is_in_order_and_training_is_shuffled_by_seed_and_epoch(prepared: Path) -> None:
    assert rows(module(prepared).val_dataloader()) == blocks_of(prepared, "val")
    loader = module(prepared, seed=1).train_dataloader()
    first, second = rows(loader), rows(loader)
    assert first == rows(module(prepared, seed=1).train_dataloader())
    assert first != rows(module(prepared, seed=2).train_dataloader())
    assert first != second
    assert first != sorted(first, key=blocks_of(prepared, "train").index)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_iterator_that_is_abandoned_neither_repeats_nor_skips_training_data(
    prepared: Path, num_workers: int
) -> None:
    loader = module(prepared, num_workers=num_workers).train_dataloader()
    wanted = rows(loader) + rows(loader)
    loader = module(prepared, num_workers=num_workers).train_dataloader()
    found: list[tuple[int, ...]] = []
    while len(found) < len(wanted):
        found += rows(itertools.islice(loader, 40))
    assert found[: len(wanted)] == wanted
    val = module(prepared, num_workers=num_workers).val_dataloader()
    assert rows(itertools.islice(val, 3)) == rows(itertools.islice(val, 3))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_restored_in_the_middle_goes_on_with_exactly_the_next_batches(
    prepared: Path, num_workers: int
) -> None:
    loader = module(prepared, num_workers=num_workers).train_dataloader()
    wanted = rows(loader) + rows(loader)
    loader = module(prepared, num_workers=num_workers).train_dataloader()
    batches = iter(loader)
    begun = rows(next(batches) for _ in range(7))
    state = copy.deepcopy(loader.state_dict())
    del batches
    resumed = module(prepared, num_workers=num_workers).train_dataloader()
    resumed.load_state_dict(state)
    assert (begun + rows(resumed) + rows(resumed))[: len(wanted)] == wanted


def test_the_state_follows_the_data_to_another_folder_but_not_to_other_data(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loader = module(prepared).train_dataloader()
    wanted = rows(loader)
    loader = module(prepared).train_dataloader()
    batches = iter(loader)
    begun = rows(next(batches) for _ in range(3))
    state = loader.state_dict()
    resumed = module(copied(prepared, tmp_path / "elsewhere")).train_dataloader()
    resumed.load_state_dict(copy.deepcopy(state))
    assert (begun + rows(resumed))[: len(wanted)] == wanted
    other = module(prepared, seed=5).train_dataloader()
    other.load_state_dict(copy.deepcopy(state))
    assert "seed" in capsys.readouterr().out
    assert rows(other) == rows(module(prepared, seed=5).train_dataloader())


def rank_reads(rank: int, port: int, path: str, results: Any) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    data = module(Path(path))
    train, val = data.train_dataloader(), data.val_dataloader()
    results.put((rank, len(train), rows(train), rows(train), rows(val)))
    distributed.barrier()
    distributed.destroy_process_group()


def test_two_ranks_read_disjoint_equal_shares_that_make_up_the_epoch(prepared: Path) -> None:
    results = FORK.Queue()
    port = free_port()
    ranks = [FORK.Process(target=rank_reads, args=(r, port, str(prepared), results)) for r in range(2)]
    try:
        for process in ranks:
            process.start()
        (_, length, *first), (_, other_length, *second) = sorted(results.get(timeout=60) for _ in ranks)
    finally:
        for process in ranks:
            process.join(20)
            process.kill()
    everything = blocks_of(prepared, "train")
    assert length == other_length == len(everything) // 8
    for epoch in range(2):
        assert len(first[epoch]) == len(second[epoch]) == length * 4
        assert not set(first[epoch]) & set(second[epoch])
        assert set(first[epoch]) | set(second[epoch]) <= set(everything)
    assert set(first[0]) != set(first[1])
    assert not set(first[2]) & set(second[2])
    assert len(first[2]) == len(second[2]) == len(blocks_of(prepared, "val")) // 8 * 4


@pytest.mark.parametrize("stop", [5, 10, 13])
def test_a_trainer_resumed_within_or_between_epochs_sees_the_data_of_one_that_never_stopped(
    prepared: Path, tmp_path: Path, stop: int
) -> None:
    def data() -> TokenDataModule:
        return TokenDataModule(str(prepared), BLOCK, batch_size=64)

    assert len(module(prepared, batch_size=64).train_dataloader()) == 10
    whole = fit(tmp_path, data(), 25).seen
    first = fit(tmp_path, data(), stop).seen
    second = fit(tmp_path, data(), 25, str(tmp_path / f"{stop}.ckpt")).seen
    assert first + second == whole
