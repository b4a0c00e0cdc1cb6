"""A process of several that goes away: the others end in time, with one line and an exit code that says what to do."""

from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

import toy
from commandline import RECIPE, arguments
from forked import FORK
from lrtrain.checkpoint.directory import newest_whole
from lrtrain.runtime.lost_processes import is_lost
from ranks import command_to_file, torchrun_environment

TIMEOUT = 6.0
"""Seconds that a collective waits."""
TIMEOUTS = {"ddp": f"--trainer.strategy.timeout=0:00:{TIMEOUT:02.0f}"}
TIMEOUTS["fsdp"] = f"--trainer.strategy.timeout_minutes={TIMEOUT / 60}"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


def fit(shards: Path, folder: Path, strategy: str, way: str, started: list[BaseProcess], rank: int = 1) -> list[Path]:
    """Starts two processes, one of which is lost in the eighth step; the files of what they print."""
    more = ["--config", str(RECIPE.parent / f"parallel/{strategy}.yaml"), TIMEOUTS[strategy]]
    more += ["--checkpoints.every_n_steps=2", "--trainer.limit_val_batches=0", "--trainer.callbacks=lost_rank.LostRank"]
    more += [f"--trainer.callbacks.way={way}", f"--trainer.callbacks.rank={rank}"]
    argv = ["fit", *arguments(shards, folder / "runs", *more, steps=1000)]
    files = [folder / f"rank{number}.txt" for number in range(2)]
    for environment, file in zip(torchrun_environment(2), files, strict=True):
        started.append(FORK.Process(target=command_to_file, args=(argv, environment, file)))
        started[-1].start()
    return files


@pytest.mark.parametrize(
    ("strategy", "way", "steps"),
    [
        pytest.param("fsdp", "killed", [4, 6], marks=pytest.mark.slow),
        ("fsdp", "stopped", [4, 6]),
        ("ddp", "killed", [7]),
    ],
)
def test_the_one_that_is_left_ends_in_time_with_a_line_and_a_checkpoint(
    strategy: str, way: str, steps: list[int], shards: Path, tmp_path: Path, started: list[BaseProcess]
) -> None:
    files = fit(shards, tmp_path, strategy, way, started)
    folder = tmp_path / "runs/quickstart/0001/checkpoints"
    started[0].join(100)
    assert started[0].exitcode == 75, files[0].read_text()
    path, broken = newest_whole(folder)
    # The shards of step 6 may be on their way still; under DDP one process alone saves the last boundary.
    assert path in [folder / f"step-{step:08d}.ckpt" for step in steps]
    assert broken == []
    said = files[0].read_text()
    lines = [line for line in said.splitlines() if "error" in line.lower()]
    assert len(lines) == 1, said
    line = lines[0]
    assert line.startswith("lrtrain: error: rank 1 (")
    assert f"s after step 7: {'Timed out' if way == 'stopped' else ''}" in line
    assert line.endswith(f"; restart with --ckpt_path last, from {path}")
    assert "Traceback" not in files[0].read_text()


@pytest.mark.slow
def test_where_the_first_is_lost_the_other_says_so(shards: Path, tmp_path: Path, started: list[BaseProcess]) -> None:
    (_, file) = fit(shards, tmp_path, "fsdp", "killed", started, rank=0)
    started[1].join(100)
    assert started[1].exitcode == 75, file.read_text()
    assert "Traceback" not in file.read_text()


def test_a_process_that_fails_by_itself_is_not_called_lost(
    shards: Path, tmp_path: Path, started: list[BaseProcess]
) -> None:
    files = fit(shards, tmp_path, "fsdp", "failed", started)
    for process in started:
        process.join(100)
    assert [process.exitcode for process in started] == [1, 1], [file.read_text() for file in files]
    assert "lrtrain: rank 1 (" in files[0].read_text()
    assert "ended with exit code 1: RuntimeError: the test's crash" in files[0].read_text()
    assert "does not answer" not in files[0].read_text()


def test_only_a_connection_that_ended_is_a_lost_process() -> None:
    gloo = "[/x/gloo/transport/tcp/pair.cc:1] "
    assert is_lost(RuntimeError(gloo + "Connection closed by peer [10.0.0.1]:1"))
    assert is_lost(RuntimeError("Application timeout caused pair closure"))
    assert is_lost(torch.distributed.DistBackendError("NCCL error: remote process exited or there was a network error"))
    assert not is_lost(
        RuntimeError("[enforce fail at /x/gloo/transport/tcp/pair.cc:4] op.preamble.length <= op.nbytes")
    )
    assert not is_lost(torch.distributed.DistBackendError("NCCL error: invalid usage, Duplicate GPU detected"))
    assert not is_lost(RuntimeError("the data loader timed out"))
