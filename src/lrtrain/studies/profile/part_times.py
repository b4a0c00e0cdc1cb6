"""Seconds of a training step by part, each moment counted once, for the innermost part that is at work."""

import re
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.profiler import record_function

DATA, CHECKPOINT, CONSTRAINTS, TELEMETRY, LOGGING = "data", "checkpoint", "constraints", "telemetry", "logging"
LOSS, BACKWARD, CLIPPING, TRAINER = "forward: head and loss", "backward", "clipping, schedule", "the Trainer itself"

OF_CALLBACK = {
    "Checkpoints": CHECKPOINT,
    "SpectralConstraints": CONSTRAINTS,
    "SpectralTelemetry": TELEMETRY,
    "NonFiniteGradients": CLIPPING,
    "Throughput": LOGGING,
    "StepProgress": LOGGING,
    "RunRecord": LOGGING,
    "ClosingValidation": TRAINER,
    "Heartbeat": TRAINER,
    "RollCall": TRAINER,
    "ProfiledSteps": TRAINER,
}
OF_HOOK = {
    "train_dataloader_next": DATA,
    "batch_to_device": DATA,
    "training_step": LOSS,
    "backward": BACKWARD,
    "configure_gradient_clipping": CLIPPING,
    "optimizer_zero_grad": CLIPPING,
    "lr_scheduler_step": CLIPPING,
    "on_before_optimizer_step": LOGGING,
    "run_training_batch": TRAINER,
    "optimizer_step": TRAINER,
    "save_checkpoint": CHECKPOINT,
}


def part_of(action: str) -> str | None:
    """The part that an action of Lightning belongs to, by its name for it; None: that in which it happens.

    It names them as in `[Callback]SpectralConstraints.on_before_optimizer_step`,
    `[Strategy]SingleDeviceStrategy.backward` and `save_checkpoint`.
    """
    owner, name, hook = re.fullmatch(r"(?:\[(\w+)\](.*)\.)?(.*)", action, re.DOTALL).groups()  # type: ignore[union-attr]
    if owner == "Callback":
        kind = re.split(r"[{(]", name)[0]
        return OF_CALLBACK.get(kind, f"callback {kind}")
    return OF_HOOK.get(hook)


class PartTimes:
    """Takes the time of parts that nest: what is inside another part is not counted as the outer one's.

    Args:
        device: Waited for wherever a part begins or ends, so that what a part has launched is its own.

    Attributes:
        steps: For each step since `record`, seconds by part.
        on: Whether times are taken.
    """

    def __init__(self, device: torch.device) -> None:
        self.steps: list[dict[str, float]] = []
        self.on = False
        self._wait = torch.cuda.synchronize if device.type == "cuda" else None
        self._open: list[tuple[str, AbstractContextManager]] = []
        self._since = 0.0

    @property
    def now(self) -> str:
        """The part that is at work."""
        return self._open[-1][0] if self._open else TRAINER

    def next_step(self) -> None:
        """Begins a step, outside every part."""
        self._lap()
        self.steps.append(defaultdict(float))

    def begin(self, part: str | None) -> None:
        """Enters a part; None goes on with that which is at work."""
        part = self.now if part is None else part
        self._lap()
        label: AbstractContextManager = record_function(part) if self.on and part != self.now else nullcontext()
        label.__enter__()
        self._open.append((part, label))

    def end(self) -> None:
        """Leaves the part that was entered last."""
        self._lap()
        self._open.pop()[1].__exit__(None, None, None)

    @contextmanager
    def inside(self, part: str) -> Iterator[None]:
        """A part inside `with`."""
        self.begin(part)
        try:
            yield
        finally:
            self.end()

    def _lap(self) -> None:
        if not self.on:
            return
        if self._wait is not None:
            self._wait()
        now = time.perf_counter()
        if self.steps:
            self.steps[-1][self.now] += now - self._since
        self._since = now
