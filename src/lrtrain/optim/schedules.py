"""Learning-rate schedules over a run of known length."""

import math
from abc import ABC, abstractmethod
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class _Schedule(LRScheduler, ABC):
    """lr of step t = base lr · factor(t), t = 0 … total_steps − 1.

    A checkpoint gives back the position alone: base rates, length and shape are those of the resumed configuration.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup: float, final: float) -> None:
        for name, value in (("warmup", warmup), ("final", final)):
            if not 0 <= value <= 1:
                raise ValueError(f"{type(self).__name__}: {name} must be in [0, 1], got {value}")
        if total_steps < 1:
            raise ValueError(f"{type(self).__name__}: the run has no step (total_steps = {total_steps})")
        self.total_steps = total_steps
        self.warmup_steps = round(warmup * total_steps)
        self.final = final
        super().__init__(optimizer)

    @abstractmethod
    def factor(self, step: int) -> float:
        """The share of the base learning rate at a step after the warm-up."""

    def get_lr(self) -> list[float]:  # type: ignore[override]
        step = min(self.last_epoch, self.total_steps)
        share = (step + 1) / self.warmup_steps if step < self.warmup_steps else self.factor(step)
        return [float(base * share) for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch, "_step_count": self._step_count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = state_dict["_step_count"]
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _progress(self, step: int, start: int) -> float:
        return (step - start) / max(1, self.total_steps - start)


class WarmupCosine(_Schedule):
    """Linear warm-up, then half a cosine down to `final`.

    factor(t) = final + (1 − final) · ½(1 + cos(π p)), p the share of the steps after the warm-up that are done.

    Args:
        optimizer: The optimizer whose groups are scheduled.
        total_steps: Optimizer steps of the run; `lrtrain` takes them from the Trainer.
        warmup: Share of the steps with a linear rise, 0 to 1.
        final: Share of the base rate at the end, 0 to 1.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup: float = 0.05, final: float = 0.0) -> None:
        super().__init__(optimizer, total_steps, warmup, final)

    def factor(self, step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * self._progress(step, self.warmup_steps)))
        return self.final + (1 - self.final) * cosine


class WarmupStableDecay(_Schedule):
    """Linear warm-up, a constant rate, then a linear fall to `final` over the last steps.

    Args:
        optimizer: The optimizer whose groups are scheduled.
        total_steps: Optimizer steps of the run; `lrtrain` takes them from the Trainer.
        warmup: Share of the steps with a linear rise, 0 to 1.
        decay: Share of the steps with the fall, 0 to 1 − warmup.
        final: Share of the base rate at the end, 0 to 1.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, warmup: float = 0.05, decay: float = 0.2, final: float = 0.0
    ) -> None:
        if decay < 0 or warmup + decay > 1 + 1e-9:
            raise ValueError(f"WarmupStableDecay: decay must be in [0, 1 - warmup], got {decay} with warmup {warmup}")
        self.decay_start = total_steps - round(decay * total_steps)
        super().__init__(optimizer, total_steps, warmup, final)

    def factor(self, step: int) -> float:
        if step < self.decay_start:
            return 1.0
        return 1 - (1 - self.final) * self._progress(step, self.decay_start)
