"""What optimizers keep for each parameter, and what a step takes in bytes and FLOPs: measured without numbers."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from lrtrain.optim import Slot, holders
from lrtrain.runtime.errors import UserError
from lrtrain.studies.plan.live_bytes import LiveBytes

FEW = 3
"""How many parameters of each shape are stepped; as many again tell how what they need grows."""

SEVERAL = {"lerp": 3, "addcmul": 3, "addcdiv": 3}
"""Operations of a number of the result, where they are not one."""

REDUCED = {"sum", "mean", "norm", "linalg_vector_norm", "amax", "amin", "max", "min", "std", "var", "dot", "cumsum"}
"""Operators that cost about as much as there are numbers in what they are given."""

MOVED = {"copy", "clone", "cat", "stack", "where", "gather", "index", "index_select", "detach", "alias", "_to_copy"}
MADE = {"empty", "full", "zeros", "ones", "arange", "eye", "fill", "zero", "_local_scalar_dense", "_unsafe_view"}
FREE = MOVED | MADE | {f"{name}_like" for name in MADE} | {"lift_fresh", "new_ones"}
"""Operators that move numbers or make them."""

Make = Callable[[Iterable[Any]], Optimizer]


@dataclass(frozen=True)
class SlotBytes:
    """One optimizer: bytes of its state, and the most that a later step allocates beside state and gradients."""

    pattern: str
    name: str
    parameters: int
    state: int
    step: float


def slot_bytes(slot: Slot, make: Make, on_cpu: bool, dtype: torch.dtype = torch.float32) -> SlotBytes:
    """Steps the optimizer on a few fake parameters of each shape and extrapolates to all of them.

    On a GPU torch handles all parameters in one call (`foreach`); the GPU's way is that of the meta device.
    """
    groups = slot.optimizer.param_groups
    shapes = [parameter.shape for group in groups for parameter in group["params"]]
    found: list[tuple[int, int]] = []
    for most in (FEW, 2 * FEW):
        chosen = list(_few_of_each(shapes, most))
        with _without_numbers(on_cpu or bool(groups[0].get("fused"))) as device:
            optimizer, parameters = _stepped(make, chosen, dtype, device)
            with LiveBytes() as live:
                optimizer.step()
        found.append((sum(shape.numel() for shape in chosen), live.peak))
    (few, least), (more, peak) = found
    growth = (peak - least) / (more - few) if more > few else 0.0
    kept = {p.shape: sum(x.nbytes for x in optimizer.state[p].values() if isinstance(x, Tensor)) for p in parameters}
    return SlotBytes(
        pattern=slot.pattern,
        name=type(optimizer).__name__,
        parameters=slot.count,
        state=sum(kept[shape] for shape in shapes),
        step=peak + growth * (slot.count - more),
    )


def _few_of_each(shapes: Sequence[torch.Size], most: int) -> Iterator[torch.Size]:
    """In their order: which tensors follow one another tells what is alive at once."""
    seen = Counter[torch.Size]()
    for shape in shapes:
        seen[shape] += 1
        if seen[shape] <= most:
            yield shape


def measured_flops(make: Make, shape: torch.Size, fused: bool) -> "MeasuredFlops":
    """FLOPs of the second step of an optimizer of one parameter."""
    with _without_numbers(on_cpu=fused) as device:
        optimizer, _ = _stepped(make, [shape], torch.float32, device)
        with MeasuredFlops() as counted:
            optimizer.step()
    return counted


class MeasuredFlops(TorchDispatchMode):
    """Counts the operators that run inside `with`: products as torch's own counter does, all else number by number.

    Attributes:
        total: FLOPs.
        missing: Names of the operators that are not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.missing: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        space, _, operator = func.name().partition("::")
        name = operator.partition(".")[0].removeprefix("_foreach_").rstrip("_")
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        elif name in REDUCED:
            self.total += _numbers(args)
        elif _is_pointwise(func, name):
            each = SEVERAL.get(name, 1) + (kwargs.get("alpha", 1) != 1)
            # In place, a list of tensors (`_foreach_…_`) comes back as nothing.
            self.total += each * (_numbers(result) or _numbers(args[0]))
        elif name not in FREE and not func.is_view and space != "profiler":
            self.missing.add(name)
        return result


def _is_pointwise(func: Any, name: str) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    overloads = [func, *(getattr(packet, overload) for overload in packet.overloads())] if packet else [func]
    return name not in FREE and any(torch.Tag.pointwise in overload.tags for overload in overloads)


def _numbers(tensors: Any) -> int:
    return sum(x.numel() for x in tree_leaves(tensors) if isinstance(x, Tensor))


@contextmanager
def _without_numbers(on_cpu: bool) -> Iterator[torch.device]:
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


def _stepped(
    make: Make, shapes: Sequence[torch.Size], dtype: torch.dtype, device: torch.device
) -> tuple[Optimizer, list[nn.Parameter]]:
    """An optimizer before its second step, and its parameters, which have gradients."""
    parameters = [nn.Parameter(torch.empty(shape, dtype=dtype, device=device)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    optimizer = make([(str(index), parameter) for index, parameter in enumerate(parameters)])
    for group in optimizer.param_groups:
        if device.type == "meta" and group.get("foreach", 0) is None and not group.get("fused"):
            group["foreach"] = True  # what torch chooses on a GPU
    _bound(optimizer)
    try:
        optimizer.step()
    except Exception as error:
        raise UserError(
            f"model.optimizers: {type(optimizer).__name__} makes no step without numbers, as a plan needs it "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]}); plan with torch.optim.AdamW in its place"
        ) from error
    _bound(optimizer)
    return optimizer, parameters


def _bound(optimizer: Optimizer) -> None:
    """Gives a step scale to each parameter where the optimizer asks for them, as its constraint does."""
    for parameter, holder in holders(optimizer, "step_scale").items():
        holder.step_scale[parameter] = parameter.new_ones(())
