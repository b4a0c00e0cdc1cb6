"""A real `lrtrain fit` that is told to end, and the run that goes on from there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow

import toy
from commandline import arguments
from lrtrain.checkpoint.directory import steps_in
from lrtrain.checkpoint.single_file import fault
from lrtrain.cli.main import main

PATIENCE = 120.0


def wait_for_step(process: "subprocess.Popen[str]", spool: Path, step: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while not (spool.is_file() and f'"step": {step}, "metrics": {{"train/loss"' in spool.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_sigterm_saves_tells_mlflow_and_ends_with_143_and_the_run_goes_on(tmp_path: Path) -> None:
    fit = arguments(toy.shards(tmp_path), tmp_path / "runs", "--trainer.logger=true", steps=100_000)
    fit += ["--trainer.limit_val_batches=0"]
    run = tmp_path / "runs/quickstart/0001"
    process = subprocess.Popen(
        [sys.executable, "-m", "lrtrain", "fit", *fit],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        wait_for_step(process, run / "metrics.jsonl", 5)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 143
    begins, *said = [line for line in err.splitlines() if line]
    assert begins.startswith("fit: ")
    (step, checkpoint), *others = steps_in(run / "checkpoints").items()
    assert said == [
        "SIGTERM: finishing this step and saving a checkpoint; once more ends at once",
        f"ended by SIGTERM; saved {checkpoint}",
        f"go on with: lrtrain fit --config {run}/config.yaml --ckpt_path last",
    ]
    assert not others
    assert fault(checkpoint) is None

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("lrtrain").experiment_id
    (killed,) = client.search_runs([experiment])
    assert killed.info.status == "KILLED"
    assert killed.info.end_time is not None
    assert len(client.get_metric_history(killed.info.run_id, "Train/loss")) == step, "points were lost"

    assert main(["fit", *fit, "--ckpt_path=last", f"--trainer.max_steps={step + 2}"]) == 0
    (finished,) = client.search_runs([experiment])
    assert (finished.info.run_id, finished.info.status) == (killed.info.run_id, "FINISHED")
    steps = [point.step for point in client.get_metric_history(finished.info.run_id, "Train/loss")]
    assert steps == list(range(1, step + 3))
    assert list(steps_in(run / "checkpoints")) == [step + 2, step]
