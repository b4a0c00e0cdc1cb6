"""Training on data on s3:// (moto on loopback): an outage is ridden out, or ends all processes with a checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import distributed

import s3_server
from checkpoint_state import assert_same_state
from commandline import PREFIX, RECIPE, arguments
from lrtrain.cli.main import main
from lrtrain.data.datamodule import TokenDataModule
from lrtrain.runtime import stores
from lrtrain.runtime.errors import UserError
from ranks import command_on_ranks, on_ranks
from token_streams import BLOCK, end_workers, first, module, rows

_end_workers = pytest.fixture(autouse=True)(end_workers)
pytestmark = pytest.mark.usefixtures("cache")
URL = "s3://bucket/data"
STEPS = 60
FSDP = RECIPE.parent / "parallel" / "fsdp.yaml"


def test_fit_saves_at_an_outage_ends_with_75_and_resumes_exactly(
    server: s3_server.S3Server, prepared: Path, tmp_path: Path, away_after: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    more = ["--data.batch_size=8", "--trainer.val_check_interval=1000", "--trainer.num_sanity_val_steps=0"]
    assert main(["fit", *arguments(prepared, tmp_path / "whole", *more, steps=STEPS)]) == 0
    runs = tmp_path / "runs"
    argv = ["fit", *arguments(URL, runs, *more, steps=STEPS)]
    away_after(3)
    assert main(argv) == 75
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(f"{PREFIX}downloading {URL}/train/chunk-")
    (saved,) = runs.rglob("*.ckpt")
    assert 8 <= int(saved.stem[5:]) < STEPS
    server.start()
    assert main([*argv, "--ckpt_path=last"]) == 0
    name = f"step-{STEPS:08d}.ckpt"
    (one,), (other,) = runs.rglob(name), (tmp_path / "whole").rglob(name)
    assert_same_state(one, other)


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param("--trainer.strategy=ddp", id="ddp"),
        pytest.param(f"--config={FSDP}", id="fsdp", marks=pytest.mark.slow),
    ],
)
def test_all_ranks_end_at_an_outage_and_leave_a_checkpoint(
    strategy: str, server: s3_server.S3Server, tmp_path: Path, away_after: Any
) -> None:
    flags = [strategy, "--trainer.devices=2", "--data.batch_size=8"]
    flags += ["--trainer.val_check_interval=1000", "--trainer.num_sanity_val_steps=0"]
    away_after(3)
    ended = command_on_ranks(2, ["fit", *arguments(URL, tmp_path, *flags, steps=2000)])
    assert [code for code, _, _ in ended] == [75, 75]
    lines = [line for _, _, err in ended for line in err.splitlines() if line.startswith(PREFIX)]
    assert len(lines) == 1
    assert lines[0].startswith(f"{PREFIX}downloading {URL}/train/chunk-")
    assert len([*tmp_path.rglob("step-*.ckpt")]) == 1


def mixed_rank(paths: list[str]) -> tuple[str, str, list[Any]]:
    """What ends a process that reads until something does, local data on one and remote on the other."""
    rank = int(os.environ["RANK"])
    distributed.init_process_group("gloo")
    seen: list[Any] = []
    try:
        data = TokenDataModule(paths[rank], BLOCK, batch_size=4)
        data.prepare_data()
        data.setup("fit")
        for batch in data.train_dataloader():
            seen += rows([batch])
            distributed.barrier()  # as a training step would
        return "none", "", seen
    except UserError as error:
        return type(error).__name__, str(error), seen
    finally:
        distributed.destroy_process_group()


def test_processes_with_local_and_with_remote_data_read_one_stream_and_end_together(
    prepared: Path, away_after: Any
) -> None:
    away_after(3)
    (kind, line, seen), (other_kind, other_line, other_seen) = on_ranks(2, mixed_rank, [str(prepared), URL])
    assert (kind, other_kind) == ("TemporaryError", "TemporaryError")
    assert line == other_line
    together = [row for i in range(0, len(seen), 4) for part in (seen, other_seen) for row in part[i : i + 4]]
    assert len(together) >= 32
    assert together == first(len(together), module(prepared, batch_size=8))


def test_processes_that_were_given_different_data_are_refused(prepared: Path, other: str) -> None:
    manifest = json.loads(stores.read(f"{other}/manifest.json"))
    manifest["train"]["chunks"].pop()
    stores.write(f"{other}/manifest.json", json.dumps(manifest).encode())
    ended = on_ranks(2, mixed_rank, [str(prepared), other])
    assert [kind for kind, _, _ in ended] == ["UserError", "UserError"]
    assert all("data.path: the processes were given different data" in line for _, line, _ in ended)
    ended = on_ranks(2, mixed_rank, [str(prepared), f"{prepared}-none"])
    assert {line for _, line, _ in ended} == {ended[0][1]}
    assert "holds no prepared data" in ended[0][1]


def fit_in_two(folder: Path, path: Path | str, seconds: str) -> subprocess.CompletedProcess[str]:
    """`lrtrain fit` in two processes that Lightning starts."""
    flags = ["--trainer.devices=2", "--data.num_workers=2", "--data.batch_size=8", "--trainer.strategy=ddp"]
    flags += ["--trainer.val_check_interval=1000", "--trainer.num_sanity_val_steps=0"]
    argv = [sys.executable, "-P", "-m", "lrtrain", "fit", *arguments(path, folder, *flags, steps=STEPS)]
    environment = {**os.environ, "LRTRAIN_STORE_WAIT": seconds}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_ride_out_a_long_outage_bit_for_bit(prepared: Path, tmp_path: Path, away_after: Any) -> None:
    assert fit_in_two(tmp_path / "whole", prepared, "1").returncode == 0
    away_after(3, 40.0)
    ended = fit_in_two(tmp_path / "runs", URL, "200")
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stderr.count("trying again in") >= 4
    name = f"step-{STEPS:08d}.ckpt"
    (one,), (other,) = (tmp_path / "runs").rglob(name), (tmp_path / "whole").rglob(name)
    assert_same_state(one, other)


@pytest.mark.slow
def test_two_processes_that_lightning_started_end_with_75_and_a_checkpoint(tmp_path: Path, away_after: Any) -> None:
    away_after(3)
    ended = fit_in_two(tmp_path, URL, "8")
    assert ended.returncode == 75, ended.stderr[-2000:]
    assert len([line for line in ended.stderr.splitlines() if line.startswith(PREFIX)]) == 1
    assert len([*tmp_path.rglob("step-*.ckpt")]) == 1
