"""Jobs of deploy/slurm: a folder to submit them from, and what a run of theirs left."""

import os
import re
import shutil
import sys
from pathlib import Path

import toy
from lrtrain.checkpoint.directory import steps_in
from run_record import CLOCK, points
from tracked import mlflow_run

DEPLOY = Path(__file__).parents[2] / "deploy"
RECIPE = DEPLOY.with_name("configs") / "quickstart.yaml"
FIT = "deploy/slurm/fit.sbatch"
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")


def project(folder: Path) -> Path:
    """A folder with `deploy/` and prepared data, as a user would submit jobs from."""
    folder.mkdir(exist_ok=True)
    shutil.copytree(DEPLOY, folder / "deploy")
    toy.shards(folder)
    return folder


def variables(**more: str) -> dict[str, str]:
    """The environment of a job: the lrtrain under test on PATH, and the address of the virtual nodes."""
    own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}
    return {**own, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", **more}


def flags(steps: int, pause: float = 0.0) -> list[str]:
    """Of `fit`: two micro-batches a step, a reader process, a checkpoint every fifth step, validations in between."""
    more = ["--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=7", "--data.num_workers=1"]
    more += ["--checkpoints.every_n_steps=5", "--checkpoints.keep=-1", "--trainer.callbacks=moments.Pause"]
    data, runs = Path("shards"), Path("runs")
    return ["--config", str(RECIPE), *toy.flags(data, runs, steps), *more, f"--trainer.callbacks.seconds={pause}"]


def run_of(folder: Path, job: str) -> Path:
    """The one run directory of a job."""
    (run,) = sorted((folder / f"runs/lrtrain-{job}").glob("[0-9]*"))
    return run


def step_of(folder: Path, job: str) -> int:
    """The last step that a job has recorded, 0 before the first."""
    spools = (folder / f"runs/lrtrain-{job}").glob("*/metrics.jsonl")
    return max(
        (int(step) for spool in spools for step in re.findall(r'"step": (\d+), "metrics"', spool.read_text())),
        default=0,
    )


def saved(run: Path) -> list[int]:
    return sorted(steps_in(run / "checkpoints"))


def assert_same_points(one: Path, other: Path) -> None:
    """Every point of the records, and of MLflow, but for those of the clock."""
    assert points(one) == points(other)
    assert _sent(one) == _sent(other)


def _sent(run: Path) -> dict[str, list[tuple[int, float]]]:
    client, tracked = mlflow_run(run)
    assert tracked.info.status == "FINISHED"
    names = [name for name in tracked.data.metrics if not name.endswith(CLOCK)]
    history = {name: client.get_metric_history(tracked.info.run_id, name) for name in names}
    return {name: sorted((point.step, point.value) for point in found) for name, found in history.items()}
