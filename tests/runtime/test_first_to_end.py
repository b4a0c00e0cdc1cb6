"""One process ends by an error of its own: all end with its exit code, whoever started them and whichever it is."""

import os
import subprocess
import sys
from itertools import product
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

import toy
from commandline import RECIPE, arguments
from endings import CODES, ended_by
from forked import FORK
from ranks import command_to_file, free_port, torchrun_environment

QUICK = (("torchrun", "mistake", 0), ("slurm", "outage", 1))
"""The store is with rank 0: where that one fails, the others must have heard of it before."""

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


def slurm_environment(count: int) -> list[dict[str, str]]:
    """What srun tells each of so many tasks on one machine."""
    shared = {"SLURM_NTASKS": str(count), "SLURM_NTASKS_PER_NODE": str(count), "SLURM_JOB_ID": "1"}
    shared |= {"SLURM_JOB_NAME": "train", "SLURM_NODELIST": "127.0.0.1", "SLURM_STEP_ID": "0"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "SLURM_NODEID": "0"}
    return [{**shared, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(count)]


def fit(shards: Path, folder: Path, *more: str) -> list[str]:
    ddp = ["--config", str(RECIPE.parent / "parallel/ddp.yaml"), "--trainer.limit_val_batches=0"]
    return ["fit", *arguments(shards, folder / "runs", *ddp, *more, steps=1000)]


@pytest.mark.parametrize(
    ("launcher", "how", "rank"),
    [
        pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
        for case in product(("torchrun", "slurm"), ("mistake", "outage", "fault", "SIGTERM", "SIGUSR1"), (0, 1))
    ],
)
def test_all_processes_end_with_the_code_of_the_one_that_fails(
    launcher: str, how: str, rank: int, shards: Path, tmp_path: Path, started: list[BaseProcess]
) -> None:
    environments = torchrun_environment(2) if launcher == "torchrun" else slurm_environment(2)
    files = [tmp_path / f"rank{number}.txt" for number in range(2)]
    argv = fit(shards, tmp_path, *ended_by(how, rank))
    for environment, file in zip(environments, files, strict=True):
        started.append(FORK.Process(target=command_to_file, args=(argv, environment, file)))
        started[-1].start()
    for process in started:
        process.join(250)
    said = [file.read_text() for file in files]
    assert [process.exitcode for process in started] == [CODES[how]] * 2, said
    assert "Traceback" not in said[1 - rank]
    if how == "mistake":
        assert said[rank].count("lrtrain: error: the disk is full; make room") == 1
        assert "does not answer" not in said[1 - rank]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "rank"), [*product(("mistake", "outage", "fault", "SIGTERM"), (0, 1))])
def test_the_process_that_lightning_started_others_from_ends_with_it(
    how: str, rank: int, shards: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "lrtrain", *fit(shards, tmp_path, *ended_by(how, rank))]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert ended.returncode == CODES[how], ended.stderr
    assert ended.stderr.count("Traceback") == (how == "fault")


def test_a_process_that_does_not_notice_is_ended(shards: Path, tmp_path: Path, started: list[BaseProcess]) -> None:
    argv = fit(shards, tmp_path, *ended_by("mistake", 1, others="endings.Hang"))
    files = [tmp_path / f"rank{number}.txt" for number in range(2)]
    for environment, file in zip(torchrun_environment(2), files, strict=True):
        started.append(FORK.Process(target=command_to_file, args=(argv, environment, file)))
        started[-1].start()
    for process in started:
        process.join(250)
    assert [process.exitcode for process in started] == [2, 2], [file.read_text() for file in files]
    assert "lrtrain: rank 1 ended with exit code 2: the disk is full; make room" in files[0].read_text()
