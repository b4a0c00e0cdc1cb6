"""The Slurm job that this process belongs to, and its way back into the queue."""

import os
import subprocess

PATIENCE = 60.0  # seconds that `scontrol` may take

INTERACTIVE = ("bash", "interactive")
"""Names of jobs in which somebody sits at a shell: `srun --pty bash`, `salloc`."""

PREFIXES = ("SLURM_", "SLURMD_", "SRUN_", "PMI_", "PMIX_")
"""Of the variables that make a process a task of a step."""


def job_id() -> str | None:
    """The id of this process's job for `scontrol`, `12` or `12_3` in an array; None without one, or at a shell."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job or os.environ.get("SLURM_JOB_NAME") in INTERACTIVE:
        return None
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else job


def requeue(job: str) -> str | None:
    """Puts a job back into the queue, upon which Slurm ends its processes; returns why that failed, or None."""
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
        )
    except FileNotFoundError:
        return "scontrol is not installed here"
    except (OSError, subprocess.TimeoutExpired) as error:
        return " ".join(str(error).split())
    said = " ".join((done.stderr or done.stdout).split())
    return None if done.returncode == 0 else said or f"scontrol ended with {done.returncode}"


def outside_of_step(environment: dict[str, str]) -> dict[str, str]:
    """An environment without what makes its process a task of a step, and Lightning take it for one of several."""
    return {name: value for name, value in environment.items() if not name.startswith(PREFIXES)}
