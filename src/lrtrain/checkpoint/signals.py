"""SIGTERM, Ctrl+C and their like: finish the step, save, leave with 128 + the signal's number.

Lightning's own handlers enter a collective in the middle of a step (a deadlock under DDP); that of SIGTERM ends with
exit code 0, that of SIGUSR1 under Slurm saves there. Here a handler only sets a flag; `Checkpoints` asks for it where
all processes can agree and nothing is half done.
"""

import contextlib
import os
import signal
import time
from types import FrameType

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.trainer.connectors.signal_connector import _SIGNUM, _SignalConnector
from lightning.pytorch.trainer.states import TrainerFn

from lrtrain.runtime.slurm import job_id

# `timeout` and batch systems signal a process and then its group: the same request, twice within a moment. Under Slurm
# both the node and srun end a task, and on a busy cluster the one comes seconds after the other.
_SAME_REQUEST_SECONDS, _SAME_REQUEST_SECONDS_OF_SLURM = 1.0, 10.0

WARNINGS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""What a lost terminal or a batch system sends before the end, and what ends a process that does not listen."""


class Told(SystemExit):
    """Ends a run that was told to end, on every process once all agreed on the signal and its checkpoint is saved."""

    def __init__(self, received: signal.Signals, code: int) -> None:
        super().__init__(code)
        self.signal = received


class GracefulSignals(_SignalConnector):
    """Replaces the Trainer's signal connector. The first SIGTERM, Ctrl+C, SIGHUP, SIGUSR1 or SIGUSR2 sets `caught`, and
    the run ends at the next step boundary; a second one, over a second later (in a Slurm job ten), ends the process at
    once. Outside fit the first one ends it. Earlier handlers are kept as Lightning keeps them, but for its own under
    Slurm.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        super().__init__(trainer)
        self.caught: signal.Signals | None = None
        self._caught_at = 0.0
        self._same_request_seconds = _SAME_REQUEST_SECONDS_OF_SLURM if job_id() else _SAME_REQUEST_SECONDS

    def register_signal_handlers(self) -> None:
        self.caught = None
        super().register_signal_handlers()
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # nohup's wish is kept
            self._register_signal(signal.SIGINT, self._sigterm_notifier_fn)
        for warning in WARNINGS:
            if signal.getsignal(warning) is signal.SIG_DFL:
                self._register_signal(warning, self._sigterm_notifier_fn)

    def _sigterm_notifier_fn(self, signum: _SIGNUM, _: FrameType) -> None:
        received = signal.Signals(signum)
        if self.trainer.state.fn != TrainerFn.FITTING:
            raise SystemExit(128 + received)
        if self.caught is None:
            self.caught, self._caught_at = received, time.monotonic()
            line = f"\n{received.name}: finishing this step and saving a checkpoint; once more ends at once\n"
            if self.trainer.local_rank == 0:  # a batch system tells every process of a node
                with contextlib.suppress(OSError):  # the terminal may be what is gone
                    os.write(2, line.encode())  # print is not reentrant, and a handler may come in the middle of one
        elif time.monotonic() - self._caught_at > self._same_request_seconds:
            if self.trainer.strategy.launcher is not None:
                self.trainer.strategy.launcher.kill(signal.SIGKILL)
            signal.signal(received, signal.SIG_DFL)
            os.kill(os.getpid(), received)

    def _slurm_sigusr_handler_fn(self, signum: _SIGNUM, frame: FrameType) -> None:
        self._sigterm_notifier_fn(signum, frame)

    def leave(self) -> Told:
        """Returns the exception to raise once all processes agreed to leave; a collective.

        Where they received different signals it is the highest: SIGTERM, with which Slurm cancels, before SIGUSR1.
        """
        strategy = self.trainer.strategy
        number = strategy.reduce(torch.tensor(self.caught or 0, device=strategy.root_device), reduce_op="max")
        agreed = signal.Signals(int(number))
        # Lightning kills the main process with SIGKILL when a child that it started ends with anything but 0.
        environment = getattr(strategy, "cluster_environment", None)
        started_by_lightning = isinstance(environment, LightningEnvironment) and self.trainer.local_rank > 0
        return Told(agreed, 0 if started_by_lightning else 128 + agreed)
