"""A study's points are each trained once, by however many workers, through kills, crashes and divergence."""

import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy import Engine, event

import stand_in_fit
from lrtrain.runtime.errors import UserError
from lrtrain.studies.jobs import Resources, launch
from lrtrain.studies.sweep import study as study_module
from lrtrain.studies.sweep.parameter import parse_parameter
from lrtrain.studies.sweep.space import Space
from lrtrain.studies.sweep.study import Study
from lrtrain.studies.sweep.trials import work
from stand_in_fit import RATE

STAND_IN = (sys.executable, stand_in_fit.__file__)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(launch, "COMMAND", STAND_IN)
    event.listen(Engine, "connect", unsynced)
    yield
    event.remove(Engine, "connect", unsynced)


def unsynced(connection: Any, _: Any) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")  # no power cut is tested: hundreds of syncs take seconds


def space(*rates: float, sampler: Any = "grid", trials: int = 0, seeds: tuple[int, ...] = ()) -> Space:
    content = {"choices": list(rates)} if rates else {"low": 1e-3, "high": 1e-1, "log": True}
    parameter = parse_parameter("s.yaml", RATE, content)
    return Space(Path("s.yaml"), (parameter,), sampler=sampler, trials=trials or len(rates), seeds=seeds)


def opened(runs: Path, searched: Space) -> Study:
    return Study(searched, "s", f"sqlite:///{runs}/sweeps.db")


def sweep(runs: Path, searched: Space, parallel: int = 1) -> tuple[Study, list[str]]:
    study, said = opened(runs, searched), []
    work(study, Resources(runs, parallel), say=said.append)
    return study, said


def starts(runs: Path) -> list[str]:
    return [line.split()[0] for line in (runs / "starts").read_text().splitlines()]


def test_a_grid_is_trained_once_and_the_best_is_found(tmp_path: Path) -> None:
    study, said = sweep(tmp_path, space(0.1, 0.01, 0.001), parallel=2)
    assert sorted(trial.value for trial in study.trials()) == [0.0, 1.0, 1.0]
    best = study.best()
    assert best is not None
    assert best.user_attrs["values"] == {RATE: 0.01}
    assert len(said) == 3
    assert any(line.startswith(f"trial 2 of 3  {RATE}=0.01  val/loss 0.0000 in ") for line in said)
    _, said = sweep(tmp_path, space(0.1, 0.01, 0.001))
    assert not said
    assert sorted(starts(tmp_path)) == ["s/trial-0001", "s/trial-0002", "s/trial-0003"]


def test_a_trial_with_seeds_is_worth_the_mean_of_its_runs(tmp_path: Path) -> None:
    study, _ = sweep(tmp_path, space(0.01, seeds=(1, 4)))
    (trial,) = study.trials()
    assert trial.value == pytest.approx(0.025)
    assert trial.user_attrs["metrics"] == pytest.approx([0.01, 0.04])
    assert starts(tmp_path) == ["s/trial-0001/seed-1", "s/trial-0001/seed-4"]


def test_a_diverged_and_a_crashed_trial_are_recorded_and_do_not_end_the_study(tmp_path: Path) -> None:
    study, said = sweep(tmp_path, space(0.9, 1e-5, 0.1))
    diverged, crashed, finished = study.trials()
    assert (diverged.value, diverged.user_attrs["status"]) == (float("inf"), "diverged")
    assert diverged.user_attrs["reason"].startswith("stopped at step 7: non-finite")
    assert (crashed.state, crashed.user_attrs["status"]) == (optuna.trial.TrialState.FAIL, "failed")
    assert "the stand-in's crash" in crashed.user_attrs["reason"]
    assert finished.value == 1.0
    best = study.best()
    assert best is not None
    assert best.number == finished.number
    assert [line.split("  ")[2].split(":")[0] for line in said[:2]] == ["diverged", "failed"]
    sweep(tmp_path, space(0.9, 1e-5, 0.1))
    assert len(starts(tmp_path)) == 3


def test_a_refusal_of_the_first_trial_ends_the_sweep_and_all_trials_wait_again(tmp_path: Path) -> None:
    refused = space(-0.1, -0.2)
    with pytest.raises(UserError, match=r"^model.optimizers.hidden: lr must be positive \(see "):
        sweep(tmp_path, refused)
    assert len(starts(tmp_path)) == 1
    assert [trial.state.name for trial in opened(tmp_path, refused).trials()] == ["WAITING", "WAITING"]


def test_crashes_in_a_row_from_the_start_end_the_sweep_and_the_trials_wait_again(tmp_path: Path) -> None:
    crashing = space(1e-5, 1e-6, 1e-7, 1e-8)
    with pytest.raises(UserError, match=r"all 3 trials so far failed, the last one: RuntimeError: the stand-in's"):
        sweep(tmp_path, crashing)
    assert len(starts(tmp_path)) == 3
    assert {trial.state.name for trial in opened(tmp_path, crashing).trials()} == {"WAITING"}


def test_random_points_do_not_depend_on_the_workers(tmp_path: Path) -> None:
    points = []
    for parallel in (1, 3):
        runs = tmp_path / str(parallel)
        runs.mkdir()
        study, _ = sweep(runs, space(sampler="random", trials=3), parallel)
        points.append([trial.user_attrs["values"][RATE] for trial in study.trials()])
    assert points[0] == points[1]
    assert len(set(points[0])) == 3
    assert all(1e-3 <= rate <= 1e-1 for rate in points[0])


def test_first_points_come_before_what_is_sampled_and_each_is_trained_once(tmp_path: Path) -> None:
    searched = dataclasses.replace(space(sampler="tpe", trials=4), first=({RATE: 0.01}, {}))
    study, _ = sweep(tmp_path, searched)
    rates = [trial.user_attrs["values"][RATE] for trial in study.trials()]
    assert rates[0] == 0.01
    assert len(set(rates)) == 4
    assert all(1e-3 <= rate <= 1e-1 for rate in rates)
    _, said = sweep(tmp_path, searched)
    assert not said


def test_more_trials_are_added_to_a_study_and_tpe_comes_close(tmp_path: Path) -> None:
    sweep(tmp_path, space(sampler="tpe", trials=3))
    study, said = sweep(tmp_path, space(sampler="tpe", trials=9), parallel=2)
    assert len(said) == 6
    best = study.best()
    assert best is not None
    assert best.value is not None
    assert best.value < 0.1


def test_another_space_under_the_name_is_refused(tmp_path: Path) -> None:
    sweep(tmp_path, space(0.1))
    with pytest.raises(UserError, match=r"the study 's' in sqlite:.* has another space \(parameters.*choices: \[0.1\]"):
        opened(tmp_path, space(0.2))


@pytest.mark.parametrize(
    "url", ["nonsense", "sqlite:////dev/null/x/s.db", "nosql://host/db", "sqlite:////dev/null", "postgresql://u:pw@h/d"]
)
def test_a_storage_that_cannot_be_opened_is_refused_in_a_line(url: str) -> None:
    with pytest.raises(UserError, match=r"^--storage .*: cannot be used \(.+\): correct the URL") as refusal:
        Study(space(0.1), "s", url)
    assert "\n" not in str(refusal.value)
    assert "pw" not in str(refusal.value)


def test_a_trial_whose_worker_went_silent_waits_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_module, "SILENCE", 1)
    monkeypatch.setattr(study_module.socket, "gethostname", lambda: "elsewhere")
    study = opened(tmp_path, space(sampler="random", trials=1))
    claimed = study.claim()
    assert claimed is not None
    monkeypatch.undo()
    assert opened(tmp_path, space(sampler="random", trials=1)).claim() is None
    monkeypatch.setattr(study_module, "SILENCE", 1)
    time.sleep(2.1)
    again = opened(tmp_path, space(sampler="random", trials=1)).claim()
    assert again is not None
    assert again[1] == claimed[1]
    study.tell(claimed[0], 1.0, "finished", "")  # too late: it is the other's now
    (trial,) = study.trials()
    assert trial.number == again[0].number


PROGRAM = f"""
import sys
from pathlib import Path
from lrtrain.studies.jobs import launch
from test_sweep_study import space, sweep
launch.COMMAND = {STAND_IN!r}
_, said = sweep(Path(sys.argv[1]), space(*map(float, sys.argv[2:])))
print(sum(line.startswith("trial") for line in said))
"""


def start(runs: Path, *rates: float, seconds: float) -> "subprocess.Popen[str]":
    folders = [str(Path(__file__).parent), str(Path(stand_in_fit.__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "STAND_IN_SECONDS": str(seconds), "PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, "-c", PROGRAM, str(runs), *map(str, rates)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_workers_share_a_study_and_train_no_point_twice(tmp_path: Path) -> None:
    rates = [0.1 / 2**n for n in range(8)]
    workers = [start(tmp_path, *rates, seconds=0.2) for _ in range(2)]
    outputs = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert sum(int(out) for out, _ in outputs) == 8
    assert sorted(starts(tmp_path)) == [f"s/trial-{n:04d}" for n in range(1, 9)]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_sweep_goes_on_with_the_trial_that_ran_from_its_checkpoint(
    how: signal.Signals, tmp_path: Path
) -> None:
    worker = start(tmp_path, 0.1, 0.01, seconds=200)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("s/*/*/checkpoints/*")):
            assert worker.poll() is None, worker.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        worker.send_signal(how)
        worker.communicate(timeout=60)
    finally:
        worker.kill()
    study, said = sweep(tmp_path, space(0.1, 0.01))
    assert len(said) == 2
    assert [trial.value for trial in study.trials()] == [1.0, 0.0]
    assert (tmp_path / "starts").read_text().split("\n")[:3] == [
        "s/trial-0001 fresh 1",
        "s/trial-0002 fresh 1",
        "s/trial-0001 resumed 1",
    ]
