"""Some steps of a real run, measured: the Trainer's profiler that takes times, and the callback that says when."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.profilers import Profiler
from torch import nn

from lrtrain.nn.decoder import Block
from lrtrain.studies.profile.part_times import CONSTRAINTS, LOGGING, PartTimes, part_of
from lrtrain.studies.profile.peak_composition import Composition, PeakComposition
from lrtrain.training.callbacks.spectral_constraints import SpectralConstraints
from lrtrain.training.callbacks.spectral_telemetry import SpectralTelemetry

WARM_UP, STEPS = 4, 10
"""Steps before, of which the first is left out, and steps that are measured; one more is for the memory."""

TRACE, SNAPSHOT = "trace.json.gz", "memory.pickle"


class PartProfiler(Profiler):
    """Tells `PartTimes` of everything that Lightning names, and each batch that is asked for begins a step."""

    def __init__(self, times: PartTimes, on_step: Callable[[], None]) -> None:
        super().__init__()
        self._times, self._on_step = times, on_step

    def start(self, action_name: str) -> None:
        if action_name == "run_training_epoch":
            return
        if action_name.endswith("train_dataloader_next"):
            self._on_step()
        self._times.begin(part_of(action_name))

    def stop(self, action_name: str) -> None:
        if action_name != "run_training_epoch":
            self._times.end()


class ProfiledSteps(L.Callback):
    """Warms up, measures ten steps under the PyTorch profiler, looks at the memory of one more, and ends the run.

    A GPU is waited for wherever a part begins or ends. Blocks that are compiled are one part of the forward pass, since
    what is inside has no border any more.

    Args:
        folder: Where the trace goes, and a snapshot of a GPU's memory.
        device: Of the run.
        often: Steps between two measurements of the telemetry, at most.

    Attributes:
        times: By part, of the ten steps.
        plain: Seconds of the steps before, without the profiler.
        memory: At the peak of the last step; None where weights are sharded.
        telemetry_every: Steps between two measurements as configured; 0 without any.
        allocated: Bytes of a GPU at its peak: by tensors, and taken by the allocator.
    """

    def __init__(self, folder: Path, device: torch.device, often: int) -> None:
        self.folder, self.device, self.often = folder, device, often
        self.telemetry_every = 0
        self.times = PartTimes(device)
        self.profiler = PartProfiler(self.times, self._next)
        self.plain: list[float] = []
        self.memory: Composition | None = None
        self.allocated: tuple[int, int] | None = None
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._torch = torch.profiler.profile(activities=activities)
        self._peak: PeakComposition | None = None
        self._step = 0  # that is being made; Lightning asks for its batch first
        self._trainer: L.Trainer | None = None
        self._model: L.LightningModule

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._trainer, self._model = trainer, pl_module
        decoder: Any = pl_module.decoder
        self._mark(decoder.embedding, "forward: embedding")
        for block in decoder.blocks:
            compiled = "forward" in vars(block)
            self._mark(block, "forward: blocks" if compiled else "forward: norms and residuals")
            if isinstance(block, Block) and not compiled:
                self._mark(block.attention, "forward: attention")
                self._mark(block.mlp, "forward: MLP")
        for optimizer in getattr(trainer.optimizers[0], "optimizers", trainer.optimizers):
            name = f"optimizer: {type(optimizer).__name__}"
            optimizer.register_step_pre_hook(lambda *_, name=name: self.times.begin(name))
            optimizer.register_step_post_hook(lambda *_: self.times.end())
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, SpectralConstraints):
                for constraint in callback.constraints.values():
                    self._wrap(constraint, "after_step", CONSTRAINTS)
            if isinstance(callback, SpectralTelemetry):
                self.telemetry_every = callback.every_n_steps
                callback.every_n_steps = min(callback.every_n_steps, self.often)
        for logger in trainer.loggers:
            self._wrap(logger, "log_metrics", LOGGING)

    def _mark(self, module: nn.Module, part: str) -> None:
        """Makes a module's forward pass a part of its own, but not where the backward pass repeats it."""

        def enter(*_: Any) -> None:
            self.times.begin(part if self.times.now.startswith("forward") else None)

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(lambda *_: self.times.end(), always_call=True)

    def _wrap(self, owner: Any, method: str, part: str) -> None:
        plain = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.times.inside(part):
                return plain(*args, **kwargs)

        setattr(owner, method, timed)

    def _next(self) -> None:
        """Ends the step before and begins another, where the batch of a step is asked for."""
        step = 1 if self._trainer is None else self._trainer.global_step + 1
        if step == self._step:  # a loader without a length is asked for one batch ahead
            return
        self._step = step
        if step == 2:
            self.times.on = True
        if 2 <= step <= WARM_UP + STEPS + 1:
            self.times.next_step()
        if step == WARM_UP + 1:
            self.plain = [sum(one.values()) for one in self.times.steps[:-1]]
            self.times.steps.clear()
            self._torch.start()
            self.times.next_step()
        elif step == WARM_UP + STEPS + 1:
            self._end_times()
            self._begin_memory()

    def _end_times(self) -> None:
        self.times.steps.pop()
        self.times.on = False
        self._torch.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._torch.export_chrome_trace(str(self.folder / TRACE))

    def _begin_memory(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.memory._record_memory_history(max_entries=100_000)
        if not any(hasattr(p, "device_mesh") for p in self._model.parameters()):
            torch.compiler.set_stance("force_eager")
            assert self._trainer is not None
            self._peak = PeakComposition(self._model, self._trainer.optimizers[0], lambda: self.times.now)
            self._peak.__enter__()

    def on_before_backward(self, *_: Any) -> None:
        if self._peak is not None:
            self._peak.gradients_dropped()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._step < WARM_UP + STEPS + 1:
            return
        if self._peak is not None:
            self._peak.__exit__(None, None, None)
            self._peak.close()
            torch.compiler.set_stance("default")
            self.memory, self._peak = self._peak.found, None
        if self.device.type == "cuda":
            self.allocated = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            torch.cuda.memory._dump_snapshot(str(self.folder / SNAPSHOT))
            torch.cuda.memory._record_memory_history(enabled=None)
        trainer.should_stop = True
