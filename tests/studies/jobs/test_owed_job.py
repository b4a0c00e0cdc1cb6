"""A job whose process went in the last validation of its run is finished by the next start, not stuck."""

import os
import signal
from pathlib import Path

import toy
from commandline import RECIPE
from forked import FORK
from lrtrain.cli.main import main
from lrtrain.studies.jobs.job import Job
from lrtrain.studies.jobs.job_record import record_job
from lrtrain.studies.jobs.launch import arguments, run_job

STOP = ["commandline.StopIn", "hook=on_validation_batch_start", "count=3", f"signal={int(signal.SIGKILL)}"]
"""In the validation of step 4, after the two batches of that of step 2."""


def test_a_job_that_was_killed_in_its_last_validation_is_finished(tmp_path: Path) -> None:
    flags = [flag.removeprefix("--").split("=", 1) for flag in toy.flags(toy.shards(tmp_path), tmp_path, steps=4)]
    settings: dict[str, object] = {key: value for key, value in flags if key != "runs"}
    settings |= {"trainer.logger": False, "checkpoints.every_n_steps": 2}
    settings["checkpoints.asynchronous"] = False  # the last one is there when the process goes
    job = Job("x", (RECIPE,), settings, tmp_path)
    record_job(job)
    stop = ["--trainer.callbacks=" + STOP[0], *(f"--trainer.callbacks.{part}" for part in STOP[1:])]
    process = FORK.Process(target=_run, args=(["fit", *arguments(job), *stop],))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    outcome = run_job(job)
    assert outcome.status == "finished"
    assert outcome.metric is not None
    assert "step 4 is the last one already: closing the run" in (tmp_path / "x/fit.log").read_text()


def _run(argv: list[str]) -> None:
    os._exit(main(argv))
