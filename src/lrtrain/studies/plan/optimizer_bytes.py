"""What optimizers keep for each parameter and need while they step, asked of the optimizers themselves."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from lrtrain.optim import Slot, holders
from lrtrain.runtime.errors import UserError
from lrtrain.studies.plan.live_bytes import LiveBytes


@dataclass(frozen=True)
class SlotBytes:
    """One optimizer: bytes of its state, and the most that a later step allocates beside state and gradients."""

    name: str
    parameters: int
    state: int
    step: float


FEW = 3
"""How many parameters of each shape are stepped; as many again tell how what they need grows."""


def slot_bytes(
    slot: Slot, make: Callable[[Iterable[Any]], Optimizer], on_cpu: bool, dtype: torch.dtype = torch.float32
) -> SlotBytes:
    """Steps the optimizer on fake parameters, some of each shape, and carries what it needs on to all of them.

    On a GPU torch handles all parameters in one call (`foreach`); the GPU's way is that of the meta device.
    """
    shapes = dict(zip(slot.names, (p.shape for p in slot.optimizer.param_groups[0]["params"]), strict=True))
    found = []
    for times in (1, 2):
        chosen = _some(shapes, times * FEW)
        with without_numbers(on_cpu or bool(slot.optimizer.param_groups[0].get("fused"))) as device:
            state, most = _step(make, chosen, dtype, device)
        found.append((sum(shape.numel() for shape in chosen.values()), most))
    (few, least), (more, most) = found
    growth = (most - least) / (more - few) if more > few else 0.0
    of_shape = {shape: state[name] for name, shape in chosen.items()}
    return SlotBytes(
        name=type(slot.optimizer).__name__,
        parameters=slot.count,
        state=sum(of_shape[shape] for shape in shapes.values()),
        step=most + growth * (slot.count - more),
    )


@contextmanager
def without_numbers(on_cpu: bool) -> Iterator[torch.device]:
    """Inside, tensors of the device have no numbers. Fused kernels know no meta device and allocate nothing on any."""
    with FakeTensorMode() if on_cpu else nullcontext(), _ReadAsHalf():
        yield torch.device("cpu" if on_cpu else "meta")


class _ReadAsHalf(TorchDispatchMode):
    """Reading a number of a tensor that has none gives ½ (1, True): Adam's step is an early one, a condition holds."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return 0.5 if dtype.is_floating_point else True if dtype == torch.bool else 1
        return func(*args, **(kwargs or {}))


def _some(shapes: Mapping[str, torch.Size], most: int) -> dict[str, torch.Size]:
    """Of each shape at most so many."""
    number: Counter[torch.Size] = Counter()
    chosen = {}
    for name, shape in shapes.items():
        number[shape] += 1
        if number[shape] <= most:
            chosen[name] = shape
    return chosen


def _step(
    make: Callable[[Iterable[Any]], Optimizer],
    shapes: Mapping[str, torch.Size],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[dict[str, int], int]:
    """Bytes of state by parameter, and the peak of the second step."""
    optimizer, parameters = stepped(make, shapes, dtype, device)
    bounded(optimizer)
    with LiveBytes() as live:
        optimizer.step()
    state = {
        name: sum(value.nbytes for value in optimizer.state[parameter].values() if isinstance(value, Tensor))
        for name, parameter in parameters.items()
    }
    return state, live.peak


def stepped(
    make: Callable[[Iterable[Any]], Optimizer],
    shapes: Mapping[str, torch.Size],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Optimizer, dict[str, nn.Parameter]]:
    """An optimizer after its first step, and its parameters, which have gradients."""
    parameters = {name: nn.Parameter(torch.empty(shape, dtype=dtype, device=device)) for name, shape in shapes.items()}
    for parameter in parameters.values():
        parameter.grad = torch.empty_like(parameter)
    optimizer = make(list(parameters.items()))
    for group in optimizer.param_groups:
        if device.type == "meta" and group.get("foreach", 0) is None and not group.get("fused"):
            group["foreach"] = True  # what torch chooses on a GPU
    bounded(optimizer)
    try:
        optimizer.step()
    except Exception as error:
        raise UserError(
            f"model.optimizers: {type(optimizer).__name__} makes no step without numbers, as a plan needs it "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]}); plan with torch.optim.AdamW in its place"
        ) from error
    return optimizer, parameters


def bounded(optimizer: Optimizer) -> None:
    """Gives a step scale to each parameter where the optimizer asks for them, as its constraint does."""
    for parameter, holder in holders(optimizer, "step_scale").items():
        holder.step_scale[parameter] = parameter.new_ones(())
