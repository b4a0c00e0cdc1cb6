"""The scripts of deploy/slurm with an environment made up, and stubs of srun, scontrol and lrtrain on PATH."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "deploy/slurm"
SRUN = Path(__file__).parents[1] / "support/stub_srun.py"
FIT, EVALUATE, SWEEP = "fit.sbatch", "evaluate.sbatch", "sweep.sbatch"
JOB = {"SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "lrtrain", "SLURM_NTASKS": "2", "SLURM_NNODES": "1"}
JOB |= {"SLURM_NTASKS_PER_NODE": "2"}
ARRAY = {"SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "3"}


class Job:
    """A folder to run a script in as sbatch would; what its stubs were called with."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stubs = folder, folder / "stubs"
        self.stubs.mkdir()
        (folder / "deploy").mkdir()
        (folder / "deploy/slurm").symlink_to(SCRIPTS)
        self.stub("srun", f"exec {sys.executable} {SRUN} ", '"$@"')
        self.stub(
            "scontrol",
            'case $1 in show) echo "JobState=RUNNING PreemptTime=None";; *) echo "$@" >> $STUBS/scontrol;; esac',
        )
        self.lrtrain("exit 0")

    def stub(self, name: str, *script: str) -> None:
        program = self.folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/bash\n" + "".join(script) + "\n")
        program.chmod(0o755)

    def lrtrain(self, script: str) -> None:
        self.stub("lrtrain", '[ "$SLURM_PROCID" != 0 ] || echo "${@@Q}" >> $STUBS/lrtrain\n', script)

    def start(self, script: str, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        path = f"{self.folder}/bin{os.pathsep}{os.environ['PATH']}"
        return subprocess.Popen(
            ["bash", str(SCRIPTS / script), *arguments],
            cwd=self.folder,
            env={**clean, **JOB, "STUBS": str(self.stubs), "PATH": path, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *arguments: str, **variables: str) -> tuple[int, str]:
        process = self.start(script, *arguments, **variables)
        _, said = process.communicate(timeout=60)
        assert [path.name for path in self.folder.glob(".step-*")] == []
        return process.returncode, said

    def calls(self, stub: str) -> list[list[str]]:
        file = self.stubs / stub
        lines = file.read_text().splitlines() if file.exists() else []
        return [json.loads(line) if stub == "srun" else shlex.split(line) for line in lines]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def flag(call: list[str], name: str) -> str | None:
    """The value that counts: the last."""
    values = [part.partition("=")[2] for part in call if part.startswith(f"--{name}=")]
    return values[-1] if values else None


def test_a_fit_has_the_jobs_tasks_and_a_run_of_its_own(job: Job) -> None:
    config = ["--config", "my recipe.yaml", "--trainer.max_steps=7"]
    assert job.run(FIT, *config) == (0, "")
    (call,) = job.calls("lrtrain")
    assert [call[0], *call[3:6]] == ["fit", *config]
    assert [flag(call, name) for name in ("trainer.devices", "trainer.num_nodes")] == ["2", "1"]
    assert [flag(call, name) for name in ("name", "ckpt_path", "seed_everything")] == ["lrtrain-12", "last", None]
    (step,) = job.calls("srun")
    assert step[:2] == ["--kill-on-bad-exit=1", "bash"]
    assert job.calls("scontrol") == []


def test_a_job_finds_its_run_again_and_no_other_jobs(job: Job) -> None:
    starts: list[dict[str, str]] = [
        {},
        {"SLURM_RESTART_COUNT": "1"},
        {"SLURM_JOB_ID": "13"},
        {"SLURM_JOB_NAME": "other"},
        {"SLURM_JOB_ID": "14", **ARRAY},
        {"SLURM_JOB_ID": "15", **ARRAY, "SLURM_ARRAY_TASK_ID": "4"},
        {"RUN": "lrtrain-12"},
        {"RUN": "lrtrain-10", **ARRAY},
    ]
    for variables in starts:
        assert job.run(FIT, **variables) == (0, "")
    names = [flag(call, "name") for call in job.calls("lrtrain")]
    assert names == [
        "lrtrain-12",
        "lrtrain-12",
        "lrtrain-13",
        "other-12",
        "lrtrain-10/3",
        "lrtrain-10/4",
        "lrtrain-12",
        "lrtrain-10/3",
    ]


def test_the_tasks_of_an_array_are_seeds(job: Job) -> None:
    assert job.run(FIT, **ARRAY) == (0, "")
    assert flag(job.calls("lrtrain")[0], "seed_everything") == "3"


@pytest.mark.parametrize(
    ("refused", "variables"),
    [("--name=x", {}), ("--name", {}), ("--ckpt_path=a.ckpt", {}), ("--seed_everything=1", ARRAY)],
)
def test_what_the_job_sets_is_refused(job: Job, refused: str, variables: dict[str, str]) -> None:
    code, said = job.run(FIT, "--config", "x.yaml", refused, "x", **variables)
    assert code == 2
    assert said == f"fit.sbatch: {refused.partition('=')[0]} is set by this job; RUN=NAME goes on with a run\n"
    assert job.calls("srun") == []


def test_a_seed_may_be_given_without_an_array(job: Job) -> None:
    assert job.run(FIT, "--seed_everything=5") == (0, "")
    assert flag(job.calls("lrtrain")[0], "seed_everything") == "5"


def test_apptainer_and_pyxis_run_an_image_in_the_same_folder(job: Job) -> None:
    job.stub("apptainer", 'echo "${@@Q}" >> $STUBS/apptainer; while [ "$1" != lrtrain ]; do shift; done; exec "$@"')
    assert job.run(FIT, SLURM_NTASKS="1", CONTAINER="apptainer:images/l r.sif") == (0, "")
    (call,) = job.calls("apptainer")
    here = str(job.folder)
    assert call[:8] == ["exec", "--nv", "--bind", here, "--pwd", here, "images/l r.sif", "lrtrain"]
    assert job.run(FIT, CONTAINER="pyxis:ghcr.io#me/lrtrain:1") == (0, "")
    _, step = job.calls("srun")
    assert "--container-image=ghcr.io#me/lrtrain:1" in step
    assert f"--container-mounts={here}:{here}" in step
    assert f"--container-workdir={here}" in step
    assert [call[0] for call in job.calls("lrtrain")] == ["fit", "fit"]
    assert job.run(FIT, CONTAINER="lrtrain.sif") == (
        2,
        "CONTAINER is lrtrain.sif: give apptainer:FILE.sif, pyxis:IMAGE or nothing\n",
    )


WAITS = '[ "$SLURM_PROCID" = 0 ] || exec sleep 30; '


@pytest.mark.parametrize(
    ("script", "code", "requeued"),
    [
        ("exit 1", 1, False),
        ("exit 2", 2, False),
        ("exit 75", 75, True),
        ("exit 138", 138, True),
        ("exit 143", 143, False),
        ("kill -USR1 $$", 138, True),
        (WAITS + "exit 2", 2, False),
        (WAITS + "exit 75", 75, True),
        (WAITS + "kill -USR1 $$", 138, True),
        (WAITS + "kill -KILL $$", 137, False),
    ],
)
def test_the_exit_code_decides_whether_a_job_goes_back(job: Job, script: str, code: int, requeued: bool) -> None:
    job.lrtrain(script)
    found, _ = job.run(FIT)
    assert found == code
    assert job.calls("scontrol") == ([["requeue", "12"]] if requeued else [])


def test_a_failure_that_does_not_pass_ends_the_job_in_the_end(job: Job) -> None:
    job.lrtrain("exit 75")
    assert job.run(FIT, SLURM_RESTART_COUNT="20")[0] == 75
    assert job.calls("scontrol") == []


@pytest.mark.parametrize(
    ("state", "code", "requeued"),
    [
        ("JobState=RUNNING PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=2026-01-01T00:01:00", 143, True),
        ("JobState=RUNNING PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=2026-01-01T00:01:00", 2, False),
        ("JobState=RUNNING PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=None", 143, False),
        ("JobState=CANCELLED PreemptTime=2026-01-01T00:01:00", 143, False),
        ("JobState=CANCELLED PreemptTime=None", 138, False),
    ],
)
def test_a_preempted_job_goes_back_and_a_cancelled_one_does_not(
    job: Job, state: str, code: int, requeued: bool
) -> None:
    job.stub("scontrol", f'case $1 in show) echo "JobId=12 {state}";; *) echo "$@" >> $STUBS/scontrol;; esac')
    job.lrtrain(f"exit {code}")
    assert job.run(FIT)[0] == code
    assert job.calls("scontrol") == ([["requeue", "12"]] if requeued else [])


def test_a_job_that_lost_a_node_goes_back_before_slurm_knows(job: Job) -> None:
    job.lrtrain("exit 1")
    assert job.run(FIT, SLURM_NNODES="2")[0] == 1
    assert job.calls("scontrol") == []
    job.stub("srun", f'case "$*" in *true) exit 1;; esac; exec {sys.executable} {SRUN} ', '"$@"')
    assert job.run(FIT, SLURM_NNODES="1")[0] == 1
    assert job.calls("scontrol") == []
    assert job.run(FIT, SLURM_NNODES="2")[0] == 1
    assert job.calls("scontrol") == [["requeue", "12"]]


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING"])
def test_a_job_that_was_cancelled_has_no_node_that_answers_and_does_not_go_back(job: Job, state: str) -> None:
    show = f'case $1 in show) echo "JobState={state} PreemptTime=None";; *) echo "$@" >> $STUBS/scontrol;; esac'
    job.stub("scontrol", show)
    job.stub("srun", f'case "$*" in *true) exit 1;; esac; exec {sys.executable} {SRUN} ', '"$@"')
    job.lrtrain("exit 143")
    assert job.run(FIT, SLURM_NNODES="2")[0] == 143
    assert job.calls("scontrol") == []


def test_a_job_that_cannot_go_back_is_said_unless_lrtrain_has_put_it_there(job: Job) -> None:
    job.lrtrain("exit 138")
    job.stub("scontrol", "echo Job is pending execution for job 12; exit 1")
    assert job.run(FIT, SLURM_NTASKS="1") == (138, "")
    job.stub("scontrol", "echo Access denied; exit 1")
    said = "told by SIGUSR1: job 12 cannot go back into the queue: Access denied\n"
    assert job.run(FIT, SLURM_NTASKS="1") == (138, said)


def test_a_signal_to_the_batch_shell_reaches_the_tasks(job: Job) -> None:
    job.lrtrain("exec > /dev/null 2>&1; trap 'exit 138' USR1; touch $STUBS/ready; sleep 30 & wait")
    process = job.start(FIT, SLURM_NTASKS="1")
    deadline = time.monotonic() + 30
    while not (job.stubs / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (138, "told by SIGUSR1: job 12 goes back into the queue\n")


def test_evaluation_takes_the_newest_run_of_its_folder(job: Job) -> None:
    for number, steps in (("0001", [5]), ("0002", [99, 100])):
        for step in steps:
            (job.folder / f"runs/lrtrain-7/3/{number}/checkpoints/step-{step:08d}.ckpt").mkdir(parents=True)
    assert job.run(EVALUATE, "runs/lrtrain-7", "--data.batch_size=2", SLURM_NTASKS="1", **ARRAY) == (0, "")
    run = "runs/lrtrain-7/3/0002"
    validate, export = job.calls("lrtrain")
    assert validate[:2] == ["validate", f"--config={run}/config.yaml"]
    assert flag(validate, "ckpt_path") == f"{run}/checkpoints/step-00000100.ckpt"
    assert flag(validate, "data.batch_size") == "2"
    assert [flag(validate, f"trainer.{name}") for name in ("devices", "num_nodes", "strategy")] == ["1", "1", "auto"]
    assert export == ["export", f"{run}/checkpoints/step-00000100.ckpt", "--out", "runs/lrtrain-7/3/export"]


def test_evaluation_asks_the_tasks_that_it_is_given_and_exports_only_after_them(job: Job) -> None:
    (job.folder / "runs/x/0001/checkpoints/step-00000001.ckpt").mkdir(parents=True)
    checkpoint = "runs/x/0001/checkpoints/step-00000001.ckpt"
    asked = {"SLURM_NTASKS": "1", "TASKS": "hellaswag,piqa,arc_easy"}
    assert job.run(EVALUATE, "runs/x", **asked) == (0, "")
    validate, evaluate, export = job.calls("lrtrain")
    assert (validate[0], export[0]) == ("validate", "export")
    assert evaluate == ["evaluate", checkpoint, "--tasks=hellaswag,piqa,arc_easy"]
    job.lrtrain('[ "$1" != evaluate ] || exit 2')
    assert job.run(EVALUATE, "runs/x", **asked)[0] == 2
    assert [call[0] for call in job.calls("lrtrain")[3:]] == ["validate", "evaluate"]


def test_evaluation_without_a_run_or_with_a_failed_validation_fails(job: Job) -> None:
    assert job.run(EVALUATE, "runs/none")[0] == 2
    code, said = job.run(EVALUATE)
    assert code != 0
    assert "give the folder of a run" in said
    (job.folder / "runs/x/0001/checkpoints/step-00000001.ckpt").mkdir(parents=True)
    job.lrtrain('[ "$1" = export ] || exit 1')
    assert job.run(EVALUATE, "runs/x", SLURM_NTASKS="1")[0] == 1
    assert [call[0] for call in job.calls("lrtrain")] == ["validate"]


def test_every_task_of_a_sweep_works_at_the_same_study(job: Job) -> None:
    flags = ["--space", "s.yaml", "--storage", "sqlite:///x.db"]
    assert job.run(SWEEP, *flags, SLURM_NTASKS="1", **ARRAY) == (0, "")
    assert job.calls("lrtrain") == [["sweep", *flags]]
    job.lrtrain("kill -USR1 $$")
    assert job.run(SWEEP, *flags, SLURM_NTASKS="1", **ARRAY)[0] == 138
    assert job.calls("scontrol") == [["requeue", "12"]]


@pytest.mark.parametrize("script", [FIT, SWEEP])
def test_a_job_that_trains_is_warned_and_put_back(script: str) -> None:
    options = re.findall(r"^#SBATCH (\S+)", (SCRIPTS / script).read_text(), re.MULTILINE)
    assert {"--requeue", "--signal=USR1@120", "--open-mode=append", "--ntasks-per-node=1"} <= {*options}


def test_a_script_outside_of_its_folder_is_refused(job: Job) -> None:
    (job.folder / "deploy/slurm").unlink()
    code, said = job.run(FIT)
    assert code == 2
    assert "deploy/slurm/launch.sh" in said
