"""What memory holds at the moment of a step when it holds most."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lrtrain.studies.plan.live_bytes import LiveBytes


@dataclass(frozen=True)
class Composition:
    """Bytes at one moment.

    Attributes:
        part: What was at work.
        weights: Parameters and buffers.
        optimizer: State of the optimizers.
        gradients: Those that are there by then; the last step's stay until this step's forward pass is over.
        activations: All else that was made in the step: what is kept for the backward pass, and temporary tensors.
    """

    part: str
    weights: int
    optimizer: int
    gradients: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.gradients + self.activations


class PeakComposition(LiveBytes):
    """Finds the composition at the peak of what runs inside `with`; an operator's internal buffers do not count.

    Args:
        model: With its parameters where they are trained.
        optimizer: With its state.
        part: Returns what is at work.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, part: Callable[[], str]) -> None:
        super().__init__()
        self._parameters = list(model.parameters())
        self._weights = _bytes(self._parameters) + _bytes(model.buffers())
        self._optimizer = _bytes(x for state in optimizer.state.values() for x in state.values())
        self._part = part
        self._old: dict[int, int] = {id(p.grad): p.grad.nbytes for p in self._parameters if p.grad is not None}
        self._new = 0
        self._hooks = [p.register_post_accumulate_grad_hook(self._made) for p in self._parameters if p.requires_grad]
        self.found = Composition(part(), self._weights, self._optimizer, sum(self._old.values()), 0)

    def gradients_dropped(self) -> None:
        """Notes that the last step's gradients are gone, if they are."""
        here = {id(p.grad) for p in self._parameters if p.grad is not None}
        self._old = {key: size for key, size in self._old.items() if key in here}

    def close(self) -> None:
        """Takes the hooks off the parameters."""
        for hook in self._hooks:
            hook.remove()

    def _made(self, parameter: nn.Parameter | Any) -> None:
        if parameter.grad is not None and id(parameter.grad) not in self._old:
            self._new += parameter.grad.nbytes

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        gradients = sum(self._old.values()) + self._new
        activations = self.now - self._new
        if self._weights + self._optimizer + gradients + activations > self.found.total:
            self.found = Composition(self._part(), self._weights, self._optimizer, gradients, activations)
        return result


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(x.nbytes for x in tensors if hasattr(x, "nbytes"))
