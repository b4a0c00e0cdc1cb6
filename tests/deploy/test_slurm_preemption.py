"""Jobs of deploy/slurm/fit.sbatch under a real Slurm: preempted, requeued, killed, they end as if nothing had been."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoint_state import assert_same_state
from slurm_cluster import Cluster, cluster, until
from slurm_jobs import FIT, TWO_NODES, assert_same_points, flags, project, run_of, saved, step_of, variables

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

STEPS = 60
WARNED, REQUEUED, PREEMPTED = "SIGUSR1", "scontrol requeue", "a job of higher priority"
PAUSE = 0.1


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def whole(slurm: Cluster, folder: Path) -> Path:
    """The run of a job that nothing disturbed."""
    job = slurm.submit(folder, *TWO_NODES, FIT, *flags(STEPS), **variables())
    assert slurm.end(job) == "COMPLETED", output(folder, job)
    return run_of(folder, job)


def output(folder: Path, job: str) -> str:
    return (folder / f"lrtrain-{job}.out").read_text()


def strike(slurm: Cluster, folder: Path, job: str, how: str) -> None:
    """Has a job leave its nodes."""
    if how == WARNED:
        slurm.ask("scancel", "--signal=USR1", job)
    elif how == REQUEUED:
        slurm.ask("scontrol", "requeue", job)
    else:
        slurm.submit(folder, "--partition=urgent", "--exclusive", "--nodes=2", "--output=/dev/null", "--wrap=sleep 1")


def left(slurm: Cluster, job: str, restarts: int) -> bool:
    """Whether a job has been put back, and runs again or has ended."""
    found = slurm.job(job)
    return int(found["Restarts"]) > restarts and found["JobState"] in ("RUNNING", "COMPLETED")


def test_ten_random_preemptions_leave_no_trace(slurm: Cluster, folder: Path, whole: Path) -> None:
    draw = random.Random(0)
    ways = [WARNED] * 4 + [REQUEUED] * 3 + [PREEMPTED] * 3
    draw.shuffle(ways)
    jobs = []
    while ways:
        job = slurm.submit(folder, *TWO_NODES, "--exclusive", FIT, *flags(STEPS, PAUSE), **variables())
        jobs.append(job)
        until(lambda job=job: slurm.state(job) == "RUNNING")
        for restarts in range(5):
            began = step_of(folder, job)
            if restarts == 2:  # while it starts: imports, or the first step
                time.sleep(draw.uniform(0, 15))
            else:
                steps = draw.randint(1, 10)
                until(lambda job=job, step=began + steps: step_of(folder, job) >= step)
                time.sleep(draw.uniform(0, 4 * PAUSE))
            how = ways.pop()
            print(f"job {job}, step {step_of(folder, job)}: {how}")
            strike(slurm, folder, job, how)
            until(lambda job=job, restarts=restarts: left(slurm, job, restarts))
    for job in jobs:
        assert slurm.end(job) == "COMPLETED", output(folder, job)
        assert int(slurm.job(job)["Restarts"]) == 5
        run = run_of(folder, job)
        assert_same_points(run, whole)
        last = f"checkpoints/step-{STEPS:08d}.ckpt"
        assert_same_state(run / last, whole / last)
        assert "Traceback" not in output(folder, job)


def test_a_killed_node_brings_the_job_back_as_it_was(slurm: Cluster, folder: Path, whole: Path) -> None:
    job = slurm.submit(folder, *TWO_NODES, FIT, *flags(STEPS, PAUSE), **variables())
    until(lambda: step_of(folder, job) > 12)
    slurm.kill_node("n2")
    until(lambda: slurm.state(job) != "RUNNING")
    slurm.start_node("n2")
    assert slurm.end(job) == "COMPLETED", output(folder, job)
    assert slurm.job(job)["Restarts"] == "1"
    run = run_of(folder, job)
    assert_same_points(run, whole)
    assert_same_state(run / f"checkpoints/step-{STEPS:08d}.ckpt", whole / f"checkpoints/step-{STEPS:08d}.ckpt")


def test_a_cancelled_job_is_saved_and_another_goes_on_with_its_run(slurm: Cluster, folder: Path, whole: Path) -> None:
    job = slurm.submit(folder, *TWO_NODES, FIT, *flags(STEPS, PAUSE), **variables())
    until(lambda: step_of(folder, job) > 6)
    slurm.ask("scancel", job)
    assert slurm.end(job) == "CANCELLED"
    until(lambda: not slurm.ask("squeue", "-h"))
    run = run_of(folder, job)
    assert saved(run)[-1] % 5 or saved(run)[-1] == step_of(folder, job), "saved at its last step"
    other = slurm.submit(folder, *TWO_NODES, FIT, *flags(STEPS), **variables(RUN=f"lrtrain-{job}"))
    assert slurm.end(other) == "COMPLETED", output(folder, other)
    assert slurm.state(job) == "CANCELLED"
    assert_same_points(run, whole)


def test_a_job_at_its_time_limit_goes_on_in_its_next_turn(slurm: Cluster, folder: Path, whole: Path) -> None:
    """Two tasks on one node, warned a minute before the limit, which comes when they train."""
    options = ("--time=30", "--signal=USR1@60", "--nodes=1", "--ntasks-per-node=2")
    job = slurm.submit(folder, *options, FIT, *flags(STEPS, 1.5), **variables())
    until(lambda: step_of(folder, job) > 2)
    minutes = int(slurm.job(job)["RunTime"].split(":")[1])
    slurm.ask("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes + 2}")
    until(lambda: slurm.job(job)["Restarts"] == "1")
    slurm.ask("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    assert slurm.end(job, 900) == "COMPLETED", output(folder, job)
    assert f"SIGUSR1: job {job} goes back into the queue" in output(folder, job)
    assert_same_points(run_of(folder, job), whole)
