"""FLOPs of an optimizer's step, counted while it runs on parameters without numbers."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from lrtrain.studies.plan.optimizer_bytes import bounded, stepped, without_numbers

SEVERAL = {"lerp": 3, "addcmul": 3, "addcdiv": 3}
"""Operations of a number of the result, where they are not one."""

REDUCED = {"sum", "mean", "norm", "linalg_vector_norm", "amax", "amin", "max", "min", "std", "var", "dot", "cumsum"}
"""Operators that cost about as much as there are numbers in what they are given."""

MOVED = {"copy", "clone", "cat", "stack", "where", "gather", "index", "index_select", "detach", "alias", "_to_copy"}
MADE = {"empty", "full", "zeros", "ones", "arange", "eye", "fill", "zero", "_local_scalar_dense", "_unsafe_view"}
FREE = MOVED | MADE | {f"{name}_like" for name in MADE} | {"lift_fresh"}
"""Operators that move numbers or make them."""


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


def measured_flops(make: Callable[[Iterable[Any]], Optimizer], shape: torch.Size, fused: bool) -> MeasuredFlops:
    """FLOPs of the second step of an optimizer of one parameter."""
    with without_numbers(on_cpu=fused) as device:
        optimizer, _ = stepped(make, {"parameter": shape}, torch.float32, device)
        bounded(optimizer)
        with MeasuredFlops() as counted:
            optimizer.step()
    return counted
