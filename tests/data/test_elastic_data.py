"""An epoch that is stopped and resumed on other processes, workers and batch sizes: every block once."""

import copy
import itertools
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed

from forked import FORK
from lrtrain.data.datamodule import TokenDataModule
from lrtrain.data.loader import BlockLoader, block_dataset
from lrtrain.data.manifest import Manifest
from ranks import free_port
from recorded_fit import fit
from token_streams import BLOCK, blocks_of, end_workers, module, rows

_end_workers = pytest.fixture(autouse=True)(end_workers)
LINE = re.compile(r"train data: resumed on (\d) .*, saved on (\d) .*: 0 blocks .* twice, (\d+) not at all\n")
Rows = list[tuple[int, ...]]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("GLOBAL_RANK", "0")


def loaders(path: Path, processes: int, batch_size: int = 4, num_workers: int = 0, state: Any = None) -> list[Any]:
    """One loader for each of several processes, which LitData believes in: it reads their number there."""
    manifest, made = Manifest.load(str(path)), []
    for rank in range(processes):
        os.environ.update(WORLD_SIZE=str(processes), GLOBAL_RANK=str(rank))
        dataset = block_dataset(str(path / "train"), BLOCK + 1, shuffle=True, seed=3)
        options = {"batch_size": batch_size, "num_workers": num_workers}
        loader = BlockLoader(dataset, manifest, "train", {"seed": 3}, **options)
        if state is not None:
            loader.load_state_dict(state)
        made.append(loader)
    return made


def read(loaders: list[Any], batches: int | None) -> tuple[list[Rows], Any]:
    """What each process reads in so many batches, or in the rest of the epoch, and the state that all save alike."""
    found, states = [], []
    for rank, loader in enumerate(loaders):
        os.environ.update(WORLD_SIZE=str(len(loaders)), GLOBAL_RANK=str(rank))
        stream = itertools.chain.from_iterable(itertools.repeat(loader))  # goes on into the next epoch
        if batches is None:
            first = next(stream)
            epoch, rest = loader.current_epoch, [first]
            rest += itertools.takewhile(lambda _, loader=loader, epoch=epoch: loader.current_epoch == epoch, stream)
            found.append(rows(rest))
        else:
            found.append(rows(itertools.islice(stream, batches)))
            states.append(copy.deepcopy(loader.state_dict()))
        loader.close()
    assert all(state == states[0] for state in states)
    assert len({len(part) for part in found}) == 1
    return found, states[0] if states else None


def together(parts: list[Rows]) -> Rows:
    return [row for part in parts for row in part]


def check(path: Path, grids: list[tuple[int, int, int]], stops: list[int], out: Any) -> None:
    """Reads an epoch on one grid (processes, batch size, workers) after another, the last to the end."""
    seen: Rows = []
    state = None
    for grid, stop in zip(grids, [*stops, None], strict=True):
        out()
        running = loaders(path, *grid, state=state)
        line = LINE.fullmatch(out())
        part, state = read(running, stop)
        seen += together(part)
    everything = blocks_of(path, "train")
    assert line is not None
    assert line[1] == str(grids[-1][0])
    assert max(Counter(seen).values()) == 1
    assert set(seen) <= set(everything)
    assert len(everything) - len(seen) == int(line[3]) < grids[-1][0] * grids[-1][1]


GRIDS = st.tuples(st.integers(1, 4), st.sampled_from([3, 4, 8]), st.just(0))


@settings(max_examples=12)
@given(grids=st.lists(GRIDS, min_size=2, max_size=4), data=st.data())
def test_every_block_of_an_epoch_is_read_once_however_often_the_processes_change(
    prepared: Path, grids: list[Any], data: st.DataObject
) -> None:
    grids = [grid for grid, _ in itertools.groupby(grids)]
    grids += [(grids[0][0] % 4 + 1, 4, 0)] if len(grids) == 1 else []
    total, stops = 693, []
    for processes, batch_size, _ in grids[:-1]:
        stops.append(data.draw(st.integers(1, max(1, total // (processes * batch_size) // 2))))
        total -= stops[-1] * processes * batch_size
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda line: printed.append(f"{line}\n"))

        def out() -> str:
            text = "".join(printed)
            printed.clear()
            return text

        check(prepared, grids, stops, out)


@pytest.mark.parametrize(
    ("grids", "stops"),
    [
        ([(2, 4, 2), (1, 4, 0)], [21]),
        ([(1, 4, 0), (2, 3, 2), (1, 4, 2)], [21, 31]),
        ([(2, 4, 0), (4, 4, 0)], [84]),
    ],
    ids=["workers to none", "none to workers to others", "near the end"],
)
def test_workers_and_batch_size_may_change_as_well(
    prepared: Path, grids: list[Any], stops: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    check(prepared, grids, stops, lambda: capsys.readouterr().out)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_within_an_epoch_that_was_dealt_anew_the_same_processes_go_on_exactly(prepared: Path, num_workers: int) -> None:
    _, begun = read(loaders(prepared, 1), 21)
    wanted, _ = read(loaders(prepared, 2, 4, num_workers, begun), None)
    first, state = read(loaders(prepared, 2, 4, num_workers, begun), 13)
    second, again = read(loaders(prepared, 2, 4, num_workers, state), 8)
    third, _ = read(loaders(prepared, 2, 4, num_workers, again), None)
    assert [a + b + c for a, b, c in zip(first, second, third, strict=True)] == wanted


def test_a_state_saved_before_the_first_batch_after_a_change_loses_nothing(prepared: Path) -> None:
    _, begun = read(loaders(prepared, 2), 21)
    wanted, _ = read(loaders(prepared, 1, state=begun), 5)
    (unread,) = loaders(prepared, 1, state=begun)
    assert read(loaders(prepared, 1, state=unread.state_dict()), 5)[0] == wanted


def test_the_epoch_after_one_that_was_dealt_anew_is_an_ordinary_one(prepared: Path) -> None:
    ordinary = loaders(prepared, 2)
    read(ordinary, None)
    wanted, _ = read(ordinary, 33)
    _, begun = read(loaders(prepared, 1), 150)
    changed = loaders(prepared, 2, state=begun)
    assert len(changed[0]) == len(ordinary[0])
    read(changed, None)
    found, state = read(changed, 30)
    assert state["begun"] == []
    more, _ = read(loaders(prepared, 2, state=state), 3)
    assert [a + b for a, b in zip(found, more, strict=True)] == wanted


def test_an_epoch_with_no_whole_batch_left_for_the_new_processes_is_passed_over(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, state = read(loaders(prepared, 1), 173)  # of 693 blocks one is left
    found, after = read(loaders(prepared, 4, state=state), 2)
    assert "1 not at all" in capsys.readouterr().out
    assert after["current_epoch"] == 2
    assert max(Counter(together(found)).values()) == 1


def rank_reads(rank: int, port: int, path: str, state: Any, batches: int, results: Any) -> None:
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    loader = module(Path(path)).train_dataloader()
    if state is not None:
        loader.load_state_dict(state)
    found = rows(itertools.islice(loader, batches))
    results.put((rank, found, loader.state_dict()))
    distributed.barrier()
    distributed.destroy_process_group()


def two_processes(path: Path, state: Any, batches: int) -> tuple[Rows, Any]:
    results, port = FORK.Queue(), free_port()
    ranks = [FORK.Process(target=rank_reads, args=(r, port, str(path), state, batches, results)) for r in range(2)]
    try:
        for process in ranks:
            process.start()
        (_, first, state), (_, second, other) = sorted((results.get(timeout=60) for _ in ranks), key=lambda r: r[0])
    finally:
        for process in ranks:
            process.join(20)
            process.kill()
    assert state == other
    return first + second, state


def test_two_real_processes_become_one_and_two_again_within_an_epoch(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "GLOBAL_RANK"):
        monkeypatch.delenv(name)
    seen, state = two_processes(prepared, None, 20)
    loader = module(prepared).train_dataloader()
    loader.load_state_dict(state)
    seen += rows(itertools.islice(loader, 33))
    left = 693 - len(seen)
    more, _ = two_processes(prepared, loader.state_dict(), left // 8)
    seen += more
    assert max(Counter(seen).values()) == 1
    assert len(set(blocks_of(prepared, "train")) - set(seen)) == left % 8


@pytest.mark.parametrize(("before", "stop", "after"), [(64, 5, 32), (32, 15, 128)], ids=["smaller", "larger"])
def test_a_trainer_resumed_with_another_batch_size_sees_the_rest_of_the_epoch(
    prepared: Path, tmp_path: Path, before: int, stop: int, after: int
) -> None:
    seen = fit(tmp_path, TokenDataModule(str(prepared), BLOCK, batch_size=before), stop).seen
    steps = (693 - len(seen)) // after
    last = stop + steps + 1
    more = fit(tmp_path, TokenDataModule(str(prepared), BLOCK, batch_size=after), last, str(tmp_path / f"{stop}.ckpt"))
    assert len(more.seen) == (steps + 1) * after  # the last one is of the next epoch
    assert max(Counter(seen + more.seen[:-after]).values()) == 1
