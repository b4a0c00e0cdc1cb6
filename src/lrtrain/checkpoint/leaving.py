"""How a run leaves that a signal ended: all processes together, and under Slurm back into the queue."""

import signal
import sys

from lrtrain.runtime import slurm
from lrtrain.runtime.ranks import first_leaves_last


def leave_together(received: signal.Signals) -> None:
    """Lets the first process act last. After SIGUSR1 in a Slurm job it calls `scontrol requeue`.

    After SIGTERM it does not: so Slurm ends what it requeues by itself, and what somebody cancelled. To be called when
    checkpoint and record are complete, since Slurm ends the processes of a job that goes back into the queue.
    """
    earlier = signal.signal(received, signal.SIG_IGN)  # other nodes' signal may come a moment later
    try:
        first_leaves_last(_requeue if received == signal.SIGUSR1 else _nothing)
    finally:
        signal.signal(received, earlier)


def _requeue() -> None:
    job = slurm.job_id()
    if job is None:
        return
    print(f"SIGUSR1: job {job} goes back into the queue", file=sys.stderr, flush=True)
    if (failed := slurm.requeue(job)) is not None:
        line = (
            f"job {job} is not in the queue again: {failed}; the checkpoint is saved, --ckpt_path last goes on from it"
        )
        print(f"lrtrain: warning: {line}", file=sys.stderr, flush=True)


def _nothing() -> None:
    pass
