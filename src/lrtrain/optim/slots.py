"""Which optimizer has which parameter."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import Tensor
from torch.optim import Optimizer

from lrtrain.optim.combined import CombinedOptimizer

OptimizerCallable = Callable[[Iterable], Optimizer]
"""(parameters) -> an optimizer. In YAML a class path with the remaining arguments."""


@dataclass
class Optimizers:
    """The optimizer of every parameter.

    Args:
        hidden: For the projections' parameters.
        other: For everything else: embedding, head, norms.
        overrides: Optimizers by parameter-name pattern (`*.s`, `embedding.*`); the first that matches wins over the
            slots.
    """

    hidden: OptimizerCallable
    other: OptimizerCallable
    overrides: dict[str, OptimizerCallable] = field(default_factory=dict)


@dataclass
class Slot:
    """One line of the coverage table."""

    pattern: str
    names: list[str]
    optimizer: Optimizer

    @property
    def count(self) -> int:
        """Numbers in the slot's parameters."""
        return sum(p.numel() for group in self.optimizer.param_groups for p in group["params"])


def build_optimizer(
    named_parameters: Mapping[str, Tensor],
    hidden: set[str],
    optimizers: Optimizers,
    deleted: Collection[str] = (),
) -> tuple[CombinedOptimizer, list[Slot]]:
    """One optimizer over all parameters, and who has which.

    Args:
        named_parameters: The trainable parameters.
        hidden: Names of those that belong to the slot `hidden`.
        optimizers: The classes to use.
        deleted: Names of parameters that training has deleted: an override may match these alone.

    Raises:
        ValueError: an override that matches no parameter or has a slot's name, no parameter is hidden, or an optimizer
            refuses its parameters.
    """
    for slot in ("hidden", "other"):
        if slot in optimizers.overrides:
            raise ValueError(f"optimizers.overrides: {slot!r} is a slot, not a pattern: set optimizers.{slot}")
    if not hidden & named_parameters.keys():
        raise ValueError("optimizers.hidden has nothing to train: the model's projections have no trainable parameter")
    makers = {**optimizers.overrides, "hidden": optimizers.hidden, "other": optimizers.other}
    members: dict[str, list[str]] = {pattern: [] for pattern in makers}
    for name in named_parameters:
        slot = "hidden" if name in hidden else "other"
        pattern = next((p for p in optimizers.overrides if fnmatchcase(name, p)), slot)
        members[pattern].append(name)
    for pattern in optimizers.overrides:
        if not members[pattern] and not any(fnmatchcase(name, pattern) for name in deleted):
            raise ValueError(f"optimizers.overrides: the pattern {pattern!r} matches no parameter that is still free")
    slots = [
        Slot(pattern, names, makers[pattern]([(name, named_parameters[name]) for name in names]))
        for pattern, names in members.items()
        if names
    ]
    return CombinedOptimizer([slot.optimizer for slot in slots]), slots


def coverage(slots: list[Slot]) -> list[list[str]]:
    """Who has which parameter, as rows of a table (pattern, parameters, count, optimizer, lr, weight decay)."""
    rows = [["pattern", "parameters", "count", "optimizer", "lr", "weight decay"]]
    for slot in slots:
        group, name = slot.optimizer.param_groups[0], type(slot.optimizer).__name__
        lr, decay = group.get("initial_lr", group["lr"]), group.get("weight_decay", 0)
        rows.append([slot.pattern, str(len(slot.names)), f"{slot.count:,}", name, f"{lr:g}", f"{decay:g}"])
    empty = {"hidden", "other"} - {slot.pattern for slot in slots}
    return rows + [[slot, "0", "0", "none: overrides have all", "", ""] for slot in sorted(empty)]
