"""What follows a job of deploy/slurm under a real Slurm: its exit code, arrays, evaluation, and sweeps."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrtrain.cli.main import COMMANDS
from run_record import statuses
from slurm_cluster import Cluster, cluster, until
from slurm_jobs import FIT, RECIPE, TWO_NODES, flags, project, saved, variables
from toy import flags as toy_flags

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

EVALUATE, SWEEP = "deploy/slurm/evaluate.sbatch", "deploy/slurm/sweep.sbatch"


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project(tmp_path_factory.mktemp("project"))


def standing_in(folder: Path, script: str) -> dict[str, str]:
    """The environment of a job whose `lrtrain` is a script."""
    program = folder / "bin/lrtrain"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/bash\n{script}\n")
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("code", "state", "exit_code", "restarts"),
    [(75, "COMPLETED", "0:0", "1"), (2, "FAILED", "2:0", "0"), (1, "FAILED", "1:0", "0")],
)
def test_the_code_of_one_task_decides_though_srun_ends_the_others(
    slurm: Cluster, folder: Path, code: int, state: str, exit_code: str, restarts: str
) -> None:
    script = f"[ -z $SLURM_RESTART_COUNT ] || exit 0; [ $SLURM_PROCID = 1 ] && exit {code}; sleep 60"
    job = slurm.submit(folder, *TWO_NODES, FIT, **standing_in(folder, script))
    assert slurm.end(job) == state
    assert (slurm.job(job)["ExitCode"], slurm.job(job)["Restarts"]) == (exit_code, restarts)
    assert not list(folder.glob(".step-*"))


def test_a_signal_before_lrtrain_listens_puts_the_job_back(slurm: Cluster, folder: Path) -> None:
    script = "[ -z $SLURM_RESTART_COUNT ] || exit 0; touch ready; sleep 60"
    job = slurm.submit(folder, *TWO_NODES, FIT, **standing_in(folder, script))
    until(lambda: (folder / "ready").exists())
    slurm.ask("scancel", "--signal=USR1", job)
    assert slurm.end(job) == "COMPLETED"
    assert slurm.job(job)["Restarts"] == "1"


def test_every_task_of_an_array_trains_a_seed_and_its_evaluation_follows(slurm: Cluster, folder: Path) -> None:
    job = slurm.submit(folder, "--array=3-4", FIT, *flags(4), **variables())
    after = [f"--dependency=aftercorr:{job}", "--array=3-4", EVALUATE, f"runs/lrtrain-{job}"]
    evaluation = slurm.submit(folder, *after, **variables())
    ends = [slurm.end(f"{each}_{task}") for each in (job, evaluation) for task in (3, 4)]
    exported = "COMPLETED" if "export" in COMMANDS else "FAILED"
    outputs = [path.read_text() for path in sorted(folder.glob("lrtrain-evaluate-*.out"))]
    assert ends == ["COMPLETED", "COMPLETED", exported, exported], outputs
    losses = []
    for seed in (3, 4):
        run = folder / f"runs/lrtrain-{job}/{seed}/0001"
        assert f"seed_everything: {seed}\n" in (run / "config.yaml").read_text()
        assert saved(run) == [4]
        assert statuses(run)[-1] == "FINISHED"
        (said,) = (text for text in outputs if f"checkpoint runs/lrtrain-{job}/{seed}/0001/" in text)
        losses += re.findall(r"val/loss +(\d\.\d{4})", said)
        if "export" in COMMANDS:
            assert list((folder / f"runs/lrtrain-{job}/{seed}/export").iterdir())
    assert len(set(losses)) == 2


def test_a_refused_fit_takes_its_evaluation_with_it(slurm: Cluster, folder: Path) -> None:
    job = slurm.submit(folder, FIT, *flags(4), "--trainer.max_stesp=3", **variables())
    after = slurm.submit(folder, f"--dependency=afterok:{job}", EVALUATE, f"runs/lrtrain-{job}", **variables())
    assert slurm.end(job) == "FAILED"
    assert slurm.job(job)["ExitCode"] == "2:0"
    assert slurm.end(after) == "CANCELLED"
    assert "unknown key; did you mean max_steps?" in (folder / f"lrtrain-{job}.out").read_text()


def test_an_array_works_at_one_study_and_a_preempted_task_of_it_goes_on(slurm: Cluster, folder: Path) -> None:
    settings = dict(flag.removeprefix("--").split("=", 1) for flag in toy_flags(Path("shards"), Path("runs"), 30))
    runs = settings.pop("runs")
    space = {"configs": [str(RECIPE)], "parameters": {"model.optimizers.hidden.lr": {"choices": [0.01, 0.02, 0.04]}}}
    overrides = {**settings, "trainer.logger": "false", "trainer.limit_val_batches": "2"}
    (folder / "s.yaml").write_text(json.dumps({**space, "overrides": overrides}))
    arguments = ["--array=0-1", SWEEP, "--space=s.yaml", f"--runs={runs}"]
    job = slurm.submit(folder, *arguments, **variables())
    until(lambda: len(list(folder.glob("runs/s/trial-*/0001/metrics.jsonl"))) == 2)
    slurm.ask("scancel", "--signal=USR1", f"{job}_0")
    assert [slurm.end(f"{job}_{task}", 900) for task in (0, 1)] == ["COMPLETED", "COMPLETED"]
    assert slurm.job(f"{job}_0")["Restarts"] == "1"
    outputs = [path.read_text() for path in sorted(folder.glob("lrtrain-sweep-*.out"))]
    assert any("study s: 3 finished, 0 diverged, 0 failed, 0 not done" in text for text in outputs), outputs
    assert (folder / "runs/s/best.yaml").exists()
