"""Saves a Trainer's state: now, or while training goes on; what goes wrong on one process is raised on every one."""

import threading
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lrtrain.checkpoint import directory as folder
from lrtrain.checkpoint.background import BackgroundWriter
from lrtrain.checkpoint.checkpoint_io import AtomicCheckpointIO
from lrtrain.checkpoint.remote_runs import linked
from lrtrain.checkpoint.uploads import Uploads
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.lost_processes import is_lost


class Saver:
    """Writes the checkpoints of one fit, one at a time, and lets go of the oldest when a newer one is whole.

    Args:
        trainer: Whose state is saved.
        keep: How many of the newest stay, -1 for all.

    Attributes:
        saved: Checkpoints so far.
        stood_still: Seconds for which training stood still for them.
        uploads: The run's copy in a store, on the first process; None without one.
    """

    def __init__(self, trainer: pl.Trainer, keep: int) -> None:
        self.saved, self.stood_still = 0, 0.0
        self.folder = Path(trainer.default_root_dir) / folder.FOLDER
        self._keep = keep
        self._first = trainer.is_global_zero
        self._writer = BackgroundWriter(self._written)
        self._in_flight = False
        self.uploads: Uploads | None = None
        self._pruning = threading.Lock()

    def copy_to(self, path: str) -> None:
        """From here on the checkpoints go to a store, too, to the run's place under `path`.

        Raises:
            UserError: the store refuses.
            TemporaryError: it does not answer.
        """
        if self._first:
            link = linked(self.folder.parent, path)
            self.uploads = Uploads(self.folder.parent, link.url, self._keep, self._prune)

    @property
    def failed(self) -> bool:
        """Whether this process could not write what is in flight: time for all of them to `settle`."""
        return self._writer.failed

    def sweep(self) -> None:
        """Removes what a killed process left half written, and says so."""
        for leftover in folder.remove_partial(self.folder) if self._first else ():
            rank_zero_info(f"removed {leftover}: left half written by a process that was killed")

    def begin(self, trainer: pl.Trainer, asynchronous: bool) -> None:
        """Sets checkpoints ahead of the step aside, and connects the threads that are to write; all processes call it.

        Raises:
            UserError: the processes have no way to talk to each other beside that of training.
        """
        if self._first and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            for path, aside in folder.set_aside(self.folder, trainer.global_step):
                rank_zero_info(f"{path} is ahead of step {trainer.global_step}: renamed to {aside.name}")
            if self.uploads is not None:
                self.uploads.begin(trainer.global_step)
        if asynchronous:
            self._connect(trainer)

    def save(self, trainer: pl.Trainer, step: int, background: bool) -> None:
        """Saves the state of a step; all processes call it. In the background it returns when the copy is made.

        Raises:
            UserError: this checkpoint, or the one before, cannot be written.
        """
        torch.get_device_module(trainer.strategy.root_device).synchronize()  # what is still computed is no wait for us
        began = time.perf_counter()
        self.settle(trainer)
        path = folder.step_path(self.folder, step)
        # A plugin of the user's own knows nothing of our writer.
        self._in_flight = background and isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)
        trainer.save_checkpoint(path, weights_only=False, storage_options=self._writer if self._in_flight else None)
        if not self._in_flight:
            self._written(path)
        seconds = time.perf_counter() - began
        self.saved, self.stood_still = self.saved + 1, self.stood_still + seconds
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.log_metrics({"checkpoint/seconds": seconds}, step=step)

    def save_alone(self, trainer: pl.Trainer, step: int) -> None:
        """Saves the state of a step without the other processes, which may be elsewhere: no collective.

        Raises:
            UserError: the checkpoint cannot be written.
        """
        if trainer.is_global_zero:
            path = folder.step_path(self.folder, step)
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.save_checkpoint(checkpoint, path)
            rank_zero_info(f"saved {path}")
            self._written(path)

    def settle(self, trainer: pl.Trainer) -> None:
        """Waits for what is in flight; all processes call it.

        Raises:
            UserError: it could not be written, by this process or by another.
        """
        if not self._in_flight:
            return
        self._in_flight = False
        error = self._writer.wait()
        told = [error and str(error)]
        if trainer.world_size > 1:
            told = [None] * trainer.world_size
            dist.all_gather_object(told, error and str(error))
        if any(told):
            raise error or UserError(next(filter(None, told)))

    def close(self, lost: bool = False) -> None:
        """Waits for what is in flight on this process and warns of what went wrong: something else ends the run.

        Where that is a lost process, its own line says so, and names the newest checkpoint.
        """
        self._in_flight = False
        error = self._writer.wait()
        if error is not None and not (lost and is_lost(error)):
            rank_zero_warn(str(error))

    def _connect(self, trainer: pl.Trainer) -> None:
        """Gives the threads of several processes that write one checkpoint their own way to talk."""
        if trainer.world_size == 1 or isinstance(trainer.strategy, DDPStrategy):
            return
        try:
            group = dist.new_group(backend="gloo", timeout=getattr(trainer.strategy, "timeout", None))
        except RuntimeError as error:
            raise UserError(
                f"checkpoints.asynchronous: gloo does not connect the processes ({str(error).splitlines()[0]}); set "
                "GLOO_SOCKET_IFNAME to the network between the hosts, or checkpoints.asynchronous to false"
            ) from error
        assert isinstance(group, dist.ProcessGroup)
        self._writer.group = group

    def _written(self, path: Path) -> None:
        """Does what waits for a checkpoint to be whole; the writer's thread calls it, too."""
        if self._first:
            if self.uploads is not None:
                self.uploads.offer(folder.step_of(path), path)
            self._prune()

    def _prune(self) -> None:
        with self._pruning:  # the threads that write and that copy
            folder.prune(self.folder, self._keep, self.uploads.needed if self.uploads is not None else ())
