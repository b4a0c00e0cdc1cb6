"""The stream of blocks: every one once an epoch, shuffled, ranks apart, and resumed exactly."""

import copy
import itertools
import time
from bisect import bisect
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from forked import FORK
from lrtrain.data.datamodule import TokenDataModule
from lrtrain.data.loader import BlockLoader
from lrtrain.data.manifest import Manifest
from lrtrain.data.order import shuffled
from ranks import free_port
from recorded_fit import fit
from token_streams import BLOCK, blocks_of, copied, end_workers, first, module, rows

_end_workers = pytest.fixture(autouse=True)(end_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_validation_and_every_epoch_of_training_have_every_block_once(prepared: Path, num_workers: int) -> None:
    data = module(prepared, num_workers=num_workers)
    assert rows(data.val_dataloader()) == blocks_of(prepared, "val")
    assert rows(data.test_dataloader()) == blocks_of(prepared, "val")
    everything = blocks_of(prepared, "train")
    assert len(everything) == 693  # no multiple of the batch size: batches run on from one epoch into the next
    batches = list(islice(data.train_dataloader(), 2 * 693 // 4))
    assert {(batch.shape, batch.dtype) for batch in batches} == {(torch.Size([4, 64]), torch.int64)}
    seen = rows(batches)
    assert sorted(seen[:693]) == sorted(everything)
    assert len(set(seen[693:])) == len(seen[693:])


def test_validation_is_in_order_and_training_is_shuffled_by_seed_and_epoch(prepared: Path) -> None:
    stream = first(2 * 693, module(prepared, seed=1))
    assert stream == first(2 * 693, module(prepared, seed=1))
    assert stream[:693] != first(693, module(prepared, seed=2))
    assert stream[:693] != stream[693:]
    assert stream[:693] != sorted(stream[:693], key=blocks_of(prepared, "train").index)


def test_neither_workers_nor_batch_size_change_the_order(prepared: Path) -> None:
    stream = first(800, module(prepared))
    assert first(800, module(prepared, num_workers=2)) == stream
    assert first(800, module(prepared, num_workers=3, batch_size=7)) == stream


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_iterator_that_is_abandoned_neither_repeats_nor_skips_training_data(
    prepared: Path, num_workers: int
) -> None:
    wanted = first(800, module(prepared))
    loader = module(prepared, num_workers=num_workers).train_dataloader()
    found: list[tuple[int, ...]] = []
    while len(found) < 800:
        found += rows(islice(loader, 40))
    assert found == wanted
    val = module(prepared, num_workers=num_workers).val_dataloader()
    assert rows(islice(val, 3)) == rows(islice(val, 3))


@pytest.mark.parametrize("begun", [7, 173, 174, 400], ids=["middle", "before a seam", "at a seam", "after two"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_restored_anywhere_goes_on_with_exactly_the_next_batches(
    prepared: Path, num_workers: int, begun: int
) -> None:
    wanted = first(4 * begun + 800, module(prepared))
    loader = module(prepared, num_workers=num_workers).train_dataloader()
    batches = iter(loader)
    for _ in range(begun):
        next(batches)
    state = copy.deepcopy(loader.state_dict())
    assert first(800, module(prepared, num_workers=num_workers), state) == wanted[4 * begun :]


def test_the_state_follows_the_data_to_another_folder_but_not_to_other_data(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = first(100, module(prepared))
    loader = module(prepared).train_dataloader()
    begun = rows(islice(loader, 3))
    state = loader.state_dict()
    assert begun + first(88, module(copied(prepared, tmp_path / "elsewhere")), state) == wanted
    assert capsys.readouterr().out == ""
    assert first(40, module(prepared, seed=5), state) == first(40, module(prepared, seed=5))
    assert "is not that of the checkpoint (seed): its stream begins anew" in capsys.readouterr().out
    before = {"dataset": {"num_samples_yielded": 12}, "data": {**state["data"], "blocks": None}, "current_epoch": 1}
    assert first(40, module(prepared), before) == wanted[:40]
    assert "(blocks): its stream begins anew" in capsys.readouterr().out


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_process_without_held_out_blocks_gets_empty_batches(prepared: Path, num_workers: int) -> None:
    manifest, held_out = Manifest.load(str(prepared)), blocks_of(prepared, "val")
    found = []
    for rank in range(3):
        size = len(held_out) // 2 - 1
        options = {"num_workers": num_workers, "rank": rank, "processes": 3}
        loader = BlockLoader(f"{prepared}/val", manifest, "val", BLOCK + 1, size, **options)
        batches = list(loader)
        assert len(loader) == len(batches) == 1
        assert batches[0].shape[1:] == (BLOCK + 1,)
        found.append(rows(batches))
    assert [len(part) for part in found] == [size, size, len(held_out) - 2 * size]
    assert sum(map(len, found)) == len(held_out)
    loader = BlockLoader(f"{prepared}/val", manifest, "val", BLOCK + 1, len(held_out), rank=2, processes=3)
    assert [batch.shape for batch in loader] == [(0, BLOCK + 1)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shard_of_a_store_is_downloaded_while_the_one_before_it_is_read(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    monkeypatch.setenv("LITDATA_CACHE_DIR", str(tmp_path))
    manifest = Manifest.load(str(prepared))
    store = f"local://{prepared}/train"  # LitData copies from there as from S3
    loader = BlockLoader(store, manifest, "train", BLOCK + 1, 4, num_workers=num_workers)
    sizes = [chunk.tokens // (BLOCK + 1) for chunk in manifest.train.chunks]
    in_order = [
        manifest.train.chunks[bisect(list(itertools.accumulate(sizes)), run[0])].file
        for run in islice(shuffled(sizes, 0), 3)
    ]
    batches = iter(loader)
    found = [next(batches)]
    wanted, deadline = set(in_order[:2]), time.monotonic() + 20
    while {file.name for file in tmp_path.rglob("*.bin")} != wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    assert {file.name for file in tmp_path.rglob("*.bin")} == wanted
    found += islice(batches, 199)
    assert rows(found) == first(800, module(prepared))
    loader.close()


def rank_reads(rank: int, port: int, path: str, results: Any) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    data = module(Path(path))
    train, val = data.train_dataloader(), data.val_dataloader()
    results.put((rank, rows(islice(train, 100)), len(val), rows(val)))
    distributed.barrier()
    distributed.destroy_process_group()


def test_two_ranks_read_the_halves_of_each_batch_that_one_would_read(prepared: Path) -> None:
    results = FORK.Queue()
    port = free_port()
    ranks = [FORK.Process(target=rank_reads, args=(r, port, str(prepared), results)) for r in range(2)]
    try:
        for process in ranks:
            process.start()
        found = sorted(results.get(timeout=60) for _ in ranks)
    finally:
        for process in ranks:
            process.join(20)
            process.kill()
    (_, train, length, val), (_, other_train, other_length, other_val) = found
    together = [row for i in range(0, 400, 4) for half in (train, other_train) for row in half[i : i + 4]]
    assert together == first(800, module(prepared, batch_size=8))
    assert sorted(val + other_val) == sorted(blocks_of(prepared, "val"))
    assert length == other_length == -(-len(blocks_of(prepared, "val")) // 8)


@pytest.mark.parametrize("stop", [5, 10, 11, 13])
def test_a_trainer_resumed_within_or_between_epochs_sees_the_data_of_one_that_never_stopped(
    prepared: Path, tmp_path: Path, stop: int
) -> None:
    def data() -> TokenDataModule:
        return TokenDataModule(str(prepared), BLOCK, batch_size=64)

    whole = fit(tmp_path, data(), 25).seen
    assert whole == first(25 * 64, module(prepared))
    begun = fit(tmp_path, data(), stop).seen
    assert begun + fit(tmp_path, data(), 25, str(tmp_path / f"{stop}.ckpt")).seen == whole
