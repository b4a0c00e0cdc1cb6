"""Stands in for srun with --kill-on-bad-exit: a process for each task; one that fails ends the others.

As Slurm does, it tells its own command line to `$STUBS/srun`, sends the tasks SIGUSR1 when it gets it, and its exit
code is the highest of the tasks', so that SIGTERM's 143 hides a 75.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

arguments = sys.argv[1:]
with Path(os.environ["STUBS"], "srun").open("a") as told:
    told.write(json.dumps(arguments) + "\n")
first = next(i for i, argument in enumerate(arguments) if not argument.startswith("--"))
tasks = [
    subprocess.Popen(
        arguments[first:], env={**os.environ, "SLURM_PROCID": str(rank), "SLURM_STEP_ID": "0"}, start_new_session=True
    )
    for rank in range(int(os.environ["SLURM_NTASKS"]))
]
signal.signal(signal.SIGUSR1, lambda *_: [os.killpg(task.pid, signal.SIGUSR1) for task in tasks])
ended = False
while any(task.poll() is None for task in tasks):
    if not ended and any(task.returncode for task in tasks):
        ended = True
        for task in tasks:
            if task.returncode is None:
                os.killpg(task.pid, signal.SIGTERM)
    time.sleep(0.02)
codes = [task.returncode for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
