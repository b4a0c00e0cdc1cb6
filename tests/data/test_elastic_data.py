"""A stream that is stopped and resumed on other processes, workers and batch sizes: the very next blocks."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed

from forked import FORK
from lrtrain.data.datamodule import TokenDataModule
from lrtrain.data.loader import BlockLoader
from lrtrain.data.manifest import Manifest
from ranks import free_port
from recorded_fit import fit
from token_streams import BLOCK, end_workers, first, module, rows

_end_workers = pytest.fixture(autouse=True)(end_workers)
Rows = list[tuple[int, ...]]
Grid = tuple[int, int, int]  # processes, blocks a batch, workers


def read(path: Path, grid: Grid, batches: int, state: Any) -> tuple[Rows, Any]:
    """What the processes of a grid read in so many batches, batch by batch, and the state that all save alike."""
    processes, batch_size, num_workers = grid
    found, states = [], []
    for rank in range(processes):
        options = {"num_workers": num_workers, "rank": rank, "processes": processes}
        loader = BlockLoader(f"{path}/train", Manifest.load(str(path)), "train", BLOCK + 1, batch_size, **options)
        if state is not None:
            loader.load_state_dict(state)
        found.append([rows([batch]) for batch in itertools.islice(loader, batches)])
        states.append(copy.deepcopy(loader.state_dict()))
        loader.close()
    assert all(state == states[0] for state in states)
    return [row for together in zip(*found, strict=True) for part in together for row in part], states[0]


def check(path: Path, grids: list[Grid], stops: list[int]) -> None:
    """Reads the stream on one grid after another."""
    seen: Rows = []
    state = None
    for grid, stop in zip(grids, stops, strict=True):
        part, state = read(path, grid, stop, state)
        seen += part
    assert seen == first(len(seen), module(path))


GRIDS = st.tuples(st.integers(1, 4), st.sampled_from([3, 4, 8]), st.just(0))


@settings(max_examples=10)
@given(data=st.data(), grids=st.lists(GRIDS, min_size=2, max_size=4))
def test_the_stream_goes_on_however_often_the_processes_change(
    prepared: Path, grids: list[Grid], data: st.DataObject
) -> None:
    check(prepared, grids, [data.draw(st.integers(0, 40)) for _ in grids])


def test_workers_may_change_as_well(prepared: Path) -> None:
    check(prepared, [(2, 4, 2), (1, 4, 0), (2, 3, 3)], [85, 11, 13])  # 680, 724 and 802 blocks; an epoch has 693


def rank_reads(rank: int, port: int, path: str, state: Any, batches: int, results: Any) -> None:
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    loader = module(Path(path)).train_dataloader()
    loader.load_state_dict(state)
    found = [rows([batch]) for batch in itertools.islice(loader, batches)]
    results.put((rank, found, loader.state_dict()))
    distributed.barrier()
    distributed.destroy_process_group()


def two_processes(path: Path, state: Any, batches: int) -> tuple[Rows, Any]:
    results, port = FORK.Queue(), free_port()
    ranks = [FORK.Process(target=rank_reads, args=(r, port, str(path), state, batches, results)) for r in range(2)]
    try:
        for process in ranks:
            process.start()
        (_, one, state), (_, two, other) = sorted((results.get(timeout=60) for _ in ranks), key=lambda r: r[0])
    finally:
        for process in ranks:
            process.join(20)
            process.kill()
    assert state == other
    return [row for parts in zip(one, two, strict=True) for part in parts for row in part], state


def test_one_process_becomes_two_real_ones_and_one_again(prepared: Path) -> None:
    seen, state = read(prepared, (1, 4, 0), 33, None)
    more, state = two_processes(prepared, state, 20)
    assert seen + more + first(400, module(prepared), state) == first(33 * 4 + 20 * 8 + 400, module(prepared))


@pytest.mark.parametrize(("before", "stop", "after"), [(64, 5, 32), (32, 15, 128)], ids=["smaller", "larger"])
def test_a_trainer_resumed_with_another_batch_size_sees_the_rest_of_the_stream(
    prepared: Path, tmp_path: Path, before: int, stop: int, after: int, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = fit(tmp_path, TokenDataModule(str(prepared), BLOCK, batch_size=before), stop).seen
    checkpoint = str(tmp_path / f"{stop}.ckpt")
    seen += fit(tmp_path, TokenDataModule(str(prepared), BLOCK, batch_size=after), stop + 9, checkpoint).seen
    assert seen == first(len(seen), module(prepared))
    assert len(seen) == before * stop + after * 9
    assert f"of all processes is {after} blocks and was {before} in the checkpoint" in capsys.readouterr().out
