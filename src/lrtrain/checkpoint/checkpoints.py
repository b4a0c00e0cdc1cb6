"""Decides when checkpoints are written and what they hold, and how a run leaves when it is told to stop.

Every checkpoint is the state at a *step boundary*: just after an optimizer step, as `on_train_batch_end` sees it.
Weights and optimizer do not change until the next update begins, so whatever ends the run in between (validation, a
half accumulated batch, an exception in a forward pass) the boundary can still be saved, with the loop's progress, the
data position and the random state that were noted there. A resume then repeats no batch and skips none.

A boundary is saved once what was logged of its step has reached the loggers, and before a validation that begins there.
Whoever is killed in that validation, once the checkpoint is written, has it, and the next run validates first.
"""

import importlib.metadata
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn
from torch.utils.hooks import RemovableHandle

from lrtrain.checkpoint.boundary import Boundary, validate_at_boundary
from lrtrain.checkpoint.checkpoint_io import AtomicCheckpointIO, check_architecture, check_tokenizer
from lrtrain.checkpoint.random_state import random_state, set_random_state
from lrtrain.checkpoint.remote_runs import check_path
from lrtrain.checkpoint.saver import Saver
from lrtrain.checkpoint.signals import GracefulSignals
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.lost_processes import is_lost


class Checkpoints(Checkpoint):
    """Writes `<default_root_dir>/checkpoints/step-00000500.ckpt` every N optimizer steps, at the end of fit, on
    SIGTERM, Ctrl+C, SIGHUP, SIGUSR1 or SIGUSR2 (exit code 128 + the signal's number), and on an exception unless it
    struck inside an optimizer update or the weights are sharded.

    Under `training.FSDP` it is a folder that all processes write (`checkpoint.shard_folder`), elsewhere one file. Every
    strategy goes on from either, on any number of processes.

    It holds what Lightning saves and, under `lrtrain`: `version`, the run's `config` and `tokenizer` as text (None
    where the run directory has no such file), `rng`, the random state of each rank, `validation_due`, whether a
    validation began at this step and was not over yet: a resumed run begins with it, and `ancestor`, the imported model
    with whose weights the run began, if it did.

    Only training batches advance the random state: after validation and data loading it is restored, so the frequency
    of validation changes no result, and a resumed run draws what the uninterrupted one drew.

    Args:
        every_n_steps: optimizer steps between checkpoints.
        keep: how many of the newest to keep, -1 for all; one goes only after its successor is whole on disk.
        asynchronous: write while training goes on, which stands still for a copy to host memory alone: one checkpoint's
            size there, on each host its processes' part. What goes wrong ends the run at the next step boundary. A
            checkpoint with which a run ends is always waited for.
        path: a store, `s3://bucket/runs` or another URL that fsspec writes, for a copy of each checkpoint and of the
            run's record, at `<path>/<name>/<NNNN>`, whole or absent; `keep` holds there, too. Null: none.

    Each save logs `checkpoint/seconds`: how long training stood still for the checkpoint of that step.

    Raises:
        UserError: an argument is out of range; the disk is full; the run directory is not a local folder; a checkpoint
            is of another tokenizer than the data.
    """

    def __init__(
        self, every_n_steps: int = 500, keep: int = 2, asynchronous: bool = True, path: str | None = None
    ) -> None:
        if every_n_steps < 1:
            raise UserError(f"checkpoints.every_n_steps is {every_n_steps}: it counts optimizer steps, at least 1")
        if keep < 1 and keep != -1:
            raise UserError(f"checkpoints.keep is {keep}: at least 1, or -1 to keep all")
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.asynchronous = asynchronous
        self.path = check_path(path) if path is not None else None
        self.validate_first = False  # a run that begins from trained weights tells their loss
        self.ancestor: dict[str, Any] | None = None
        self.saver: Saver
        self._signals: GracefulSignals
        self._shape_check: RemovableHandle | None = None
        self._boundary: Boundary | None = None
        self._random: dict[str, Any] | None = None
        self._saved_step = 0
        self._due = self._validating = self._validation_owed = False
        self._at_boundary = self._updating = self._leaving = self._alone = False

    @property
    def told(self) -> bool:
        """Whether this process was signalled to end the run: what takes long should stop."""
        return self._signals.caught is not None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if "://" in str(trainer.default_root_dir):
            raise UserError(f"trainer.default_root_dir is {trainer.default_root_dir}: checkpoints need a local folder")
        self._boundary, self._random = None, None
        self._saved_step = 0
        self._due = self._validating = self._validation_owed = False
        self._at_boundary = self._updating = self._leaving = False
        self.saver = Saver(trainer, self.keep)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # a plugin of the user's own stays
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        trainer._signal_connector = self._signals = GracefulSignals(trainer)

        def check(module: nn.Module, state_dict: dict[str, Any], _: str, metadata: Any, strict: bool, *__: Any) -> None:
            check_architecture({"state_dict": state_dict}, module, trainer.ckpt_path or "in memory", strict)

        # The last moment before weights are copied, after the module's own on_load_checkpoint had its say.
        self.teardown(trainer, pl_module, stage)  # of a run that failed
        self._shape_check = pl_module.register_load_state_dict_pre_hook(check)
        if stage == "fit":
            self.saver.sweep()
            if self.path is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                self.saver.copy_to(self.path)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        own = checkpoint.get("lrtrain", {})
        if own.get("imported") and trainer.state.fn == TrainerFn.FITTING:
            raise UserError(
                f"--ckpt_path {trainer.ckpt_path}: lrtrain import wrote it, and it holds weights alone, no run that "
                "could go on: begin with them by --init_from"
            )
        data: Any = getattr(trainer, "datamodule", None)
        if own.get("tokenizer") is not None and hasattr(data, "tokenizer_json"):
            check_tokenizer(own["tokenizer"], data.tokenizer_json(), trainer.ckpt_path or "in memory")
        self._validation_owed = own.get("validation_due", False)
        self.ancestor = own.get("ancestor")
        states = own.get("rng", [])
        if len(states) == trainer.world_size:
            self._random = states[trainer.global_rank]
        elif trainer.state.fn == TrainerFn.FITTING:
            rank_zero_warn(f"random state not restored: saved by {len(states)} ranks, {trainer.world_size} run now")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_step = trainer.global_step
        self.saver.begin(trainer, self.asynchronous)
        if self._validation_owed or (self.validate_first and trainer.global_step == 0):
            validate_at_boundary(trainer)
        self._restore_random(trainer)
        self._leave_if_asked(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._shape_check is not None:
            self._shape_check.remove()
        self.saver.close()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._save_if_due(trainer)
        self._leave_if_agreed()
        self._restore_random(trainer)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Constraints and clipping come between backward and update: from here on nothing is at the boundary.
        self._updating = not trainer.fit_loop._should_accumulate()

    def on_before_optimizer_step(self, *_: Any) -> None:
        self._updating = True  # a training_step that returned None has no backward

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._random = random_state(trainer.strategy.root_device)
        last = self._boundary.step if self._boundary else self._saved_step
        self._at_boundary = trainer.global_step != last
        if not self._at_boundary:
            return
        self._updating = False
        self._leaving = self._asked_to_leave(trainer)
        self._due = self._leaving or trainer.global_step % self.every_n_steps == 0
        # Others act between here and the save, and count micro-batches.
        self._boundary = Boundary.of(trainer, self._random, self._due or trainer.accumulate_grad_batches > 1)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validating = self._at_boundary
        self._save_if_due(trainer)
        self._leave_if_agreed()

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        # Several ranks may have different numbers of validation batches, so they agree only where validation ends.
        if trainer.state.fn == TrainerFn.FITTING and trainer.world_size == 1:
            self._leave_if_asked(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._validating and self._boundary is not None:
            self._boundary = self._boundary.after_validation(trainer)
        self._validating = False
        if trainer.state.fn == TrainerFn.FITTING:
            self._leave_if_asked(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer)
        self._leave_if_asked(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        boundary = self._boundary
        if boundary is None:
            return
        self.saver.close(is_lost(exception))
        if boundary.step == self._saved_step or trainer.state.fn != TrainerFn.FITTING:
            return
        if getattr(exception, "on_all_ranks", False):
            self._save(trainer)
        elif self._updating:
            rank_zero_warn(f"stopped inside the update after step {boundary.step}: nothing whole to save")
        elif trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy):
            if not is_lost(exception):  # whose own line names the newest checkpoint
                rank_zero_warn(
                    f"step {boundary.step} not saved: its shards lie with ranks that may not answer any more"
                )
        else:
            self._alone = True  # the other ranks may be elsewhere: no collective from here on
            try:
                self.saver.save_alone(trainer, boundary.step)
            except UserError as error:
                rank_zero_warn(str(error))  # what stopped the run is the error to end with
            finally:
                self._alone = False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        boundary, root = self._boundary, Path(trainer.default_root_dir)
        if boundary is not None:
            boundary.put_into(checkpoint)
        own = boundary.random if boundary is not None else random_state(trainer.strategy.root_device)
        states = [own]
        if trainer.world_size > 1 and not self._alone:
            states = [own] * trainer.world_size
            torch.distributed.all_gather_object(states, own)
        checkpoint["lrtrain"] = {
            "version": importlib.metadata.version("lrtrain"),
            "config": _text(root / "config.yaml"),
            "tokenizer": _text(root / "tokenizer.json"),
            "rng": states,
            "validation_due": self._validating,
            "ancestor": self.ancestor,
        }

    def _save_if_due(self, trainer: pl.Trainer) -> None:
        if self._due:
            self._save(trainer, background=self.asynchronous and not self._leaving)

    def _save(self, trainer: pl.Trainer, background: bool = False) -> None:
        """Saves the boundary unless it is saved already; in the foreground, waits for one that is still in flight."""
        boundary, self._due = self._boundary, False
        new = boundary is not None and boundary.step != self._saved_step and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if boundary is not None:
            self._saved_step = boundary.step  # also when it fails: a full disk is not tried again on the way out
        if new:
            self.saver.save(trainer, self._saved_step, background)
        elif not background:
            self.saver.settle(trainer)

    def _asked_to_leave(self, trainer: pl.Trainer) -> bool:
        """Whether any rank was signalled or could not write; all ask at the same place. One number all-reduced."""
        asked = self._signals.caught is not None or self.saver.failed
        return trainer.strategy.reduce_boolean_decision(asked, all=False)

    def _leave_if_asked(self, trainer: pl.Trainer) -> None:
        if self._leaving or self._asked_to_leave(trainer):
            self._leaving = True
            self._save(trainer)
            self._leave_if_agreed()

    def _leave_if_agreed(self) -> None:
        # Neither this nor a save in on_train_batch_end itself: the step's metrics are logged after it.
        if self._leaving:
            raise self._signals.leave()

    def _restore_random(self, trainer: pl.Trainer) -> None:
        if self._random is not None:
            set_random_state(self._random, trainer.strategy.root_device)


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
