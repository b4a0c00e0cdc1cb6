"""A run in a Slurm job, with an environment and a `scontrol` made up: what is saved, what goes back into the queue."""

import os
import signal
import stat
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.trainer.states import TrainerFn

import toy
from checkpoint_program import fit
from checkpoint_state import newest, saved_steps
from commandline import arguments, refusal
from lrtrain.checkpoint.leaving import leave_together
from lrtrain.checkpoint.signals import GracefulSignals, Told
from lrtrain.cli.main import main
from lrtrain.runtime import slurm
from moments import At
from ranks import on_ranks
from run_record import statuses

JOB = {"SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
STEP = {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "1", "SLURM_STEP_ID": "0"}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of the one task of job 12; the file that `scontrol` writes its arguments to."""
    for name, value in {**JOB, **STEP}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    called = tmp_path / "called"
    scontrol(tmp_path, f'echo "$@" >> {called}')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    return called


def scontrol(folder: Path, script: str) -> None:
    program = folder / "bin/scontrol"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_sigusr1_saves_closes_the_record_and_then_puts_the_job_back(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, run = tmp_path / "runs", tmp_path / "runs/quickstart/0001"
    scontrol(tmp_path, f'echo "$@" >> {job}; ls {run}/checkpoints >> {job}; tail -n 1 {run}/metrics.jsonl >> {job}')
    strike = ["--trainer.callbacks=commandline.StopIn", "--trainer.callbacks.hook=on_before_backward"]
    strike += ["--trainer.callbacks.count=3", f"--trainer.callbacks.signal={int(signal.SIGUSR1)}"]
    with pytest.raises(SystemExit) as left:
        main(["fit", *arguments(toy.shards(tmp_path), runs, *strike, steps=9)])
    assert left.value.code == 138
    command, checkpoint, record = job.read_text().splitlines()
    assert command == "requeue 12"
    assert checkpoint == "step-00000003.ckpt"
    assert '"status": "KILLED"' in record
    assert statuses(run) == ["RUNNING", "KILLED"]
    assert "SIGUSR1: job 12 goes back into the queue" in capsys.readouterr().err.splitlines()


def test_lightnings_own_handler_is_not_called(job: Path, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    strike = At("on_before_backward", 5, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    try:
        with pytest.raises(Told) as told:
            fit(tmp_path / "run", max_steps=20, callbacks=[strike], plugins=[SLURMEnvironment()])
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (told.value.code, told.value.signal) == (138, signal.SIGUSR1)
    assert saved_steps(tmp_path / "run") == [5]
    assert not list((tmp_path / "run").rglob("hpc_ckpt*"))
    assert not job.exists(), "whoever started the Trainer decides about the job"


@pytest.mark.parametrize(("after", "ends"), [(9.0, False), (11.0, True)])
def test_what_ends_a_task_twice_within_seconds_is_one_request(
    job: Path, monkeypatch: pytest.MonkeyPatch, after: float, ends: bool
) -> None:
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    trainer.state.fn = TrainerFn.FITTING
    signals, killed = GracefulSignals(trainer), []
    monkeypatch.setattr(os, "kill", lambda pid, received: killed.append(received))
    now = time.monotonic()
    before = signal.getsignal(signal.SIGTERM)
    try:
        for moment in (now, now + after):
            monkeypatch.setattr(time, "monotonic", lambda moment=moment: moment)
            signals._sigterm_notifier_fn(signal.SIGTERM, None)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert killed == ([signal.SIGTERM] if ends else [])


@pytest.mark.parametrize(
    ("received", "variables", "call"),
    [
        (signal.SIGUSR1, {}, "requeue 12\n"),
        (signal.SIGUSR1, {"SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "2"}, "requeue 10_2\n"),
        (signal.SIGUSR1, {"SLURM_JOB_NAME": "interactive"}, None),
        (signal.SIGUSR1, {"SLURM_JOB_ID": ""}, None),
        (signal.SIGUSR1, {"SLURM_PROCID": "1"}, None),
        (signal.SIGTERM, {}, None),
        (signal.SIGUSR2, {}, None),
    ],
)
def test_a_job_goes_back_after_sigusr1_alone(
    job: Path, monkeypatch: pytest.MonkeyPatch, received: signal.Signals, variables: dict[str, str], call: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    before = signal.getsignal(received)
    leave_together(received)
    assert (job.read_text() if job.exists() else None) == call
    assert signal.getsignal(received) == before


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo Requested operation is presently disabled >&2; exit 1", "Requested operation is presently disabled"),
        ("exit 3", "scontrol ended with 3"),
        ("sleep 5", "timed out"),
        (None, "scontrol is not installed here"),
    ],
)
def test_a_job_that_cannot_go_back_is_said_in_a_line(
    job: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    script: str | None,
    why: str,
) -> None:
    monkeypatch.setattr(slurm, "PATIENCE", 1.0)
    scontrol(tmp_path, script or "")
    if script is None:
        monkeypatch.setenv("PATH", str(tmp_path))
    leave_together(signal.SIGUSR1)
    _, line = capfd.readouterr().err.splitlines()
    assert line.startswith("lrtrain: warning: job 12 is not in the queue again: ")
    assert why in line


@pytest.mark.parametrize(
    ("struck", "agreed"),
    [([None, signal.SIGUSR1], signal.SIGUSR1), ([signal.SIGUSR1, signal.SIGTERM], signal.SIGTERM)],
)
def test_all_processes_leave_for_the_same_reason(
    tmp_path: Path, struck: list[signal.Signals | None], agreed: signal.Signals
) -> None:
    assert on_ranks(2, _leave_on_rank, tmp_path / "run", struck) == [[int(agreed), 128 + agreed, "done"]] * 2
    assert saved_steps(tmp_path / "run") == [5]
    assert newest(tmp_path / "run").is_file()


def _leave_on_rank(root: Path, struck: list[signal.Signals | None]) -> list[Any]:
    own = struck[int(os.environ["RANK"])]
    callbacks = [At("on_before_backward", 5, lambda: os.kill(os.getpid(), own))] if own else []
    options: dict[str, Any] = {"strategy": "ddp", "devices": 2, "callbacks": callbacks}
    root.mkdir(exist_ok=True)
    with pytest.raises(Told) as told:
        fit(root, max_steps=20, **options)
    leave_together(told.value.signal)
    return [int(told.value.signal), told.value.code, "done"]


def test_the_others_wait_for_the_first_process(tmp_path: Path) -> None:
    assert on_ranks(2, _wait_for_first, tmp_path / "done") == [True, True]


def _wait_for_first(file: Path) -> bool:
    import time

    import torch

    from lrtrain.runtime.ranks import first_leaves_last

    torch.distributed.init_process_group("gloo")

    def act() -> None:
        time.sleep(1)
        file.touch()

    first_leaves_last(act)
    return file.exists()


def test_several_tasks_without_srun_are_refused(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.delenv("SLURM_STEP_ID")
    line = refusal(["fit", *arguments(tmp_path / "shards", tmp_path / "runs")], capsys)
    assert line == "launcher: the Slurm job has 2 tasks, and this process is none of them: put srun before lrtrain"


def test_a_process_of_a_study_is_no_task_of_the_step(job: Path) -> None:
    inside = slurm.outside_of_step({**os.environ, "OMP_NUM_THREADS": "3"})
    assert inside["OMP_NUM_THREADS"] == "3"
    assert not [name for name in inside if name.startswith("SLURM_")]
