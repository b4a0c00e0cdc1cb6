"""Several optimizers as one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer


class CombinedOptimizer(Optimizer):
    """Steps several optimizers over disjoint parameters as if they were one.

    The parameter groups are the very dictionaries of the parts, and all parts share one `state`, so schedulers,
    clipping and checkpoints see an ordinary optimizer. Build the parts from `(name, parameter)` pairs: a checkpoint is
    matched by name, whatever order it was written in.

    Loading restores state only. Learning rates, betas and all other group values stay as they were constructed, so the
    configuration of the resumed run wins over what the checkpoint remembers.

    Args:
        optimizers: The parts; no parameter may belong to two.

    Raises:
        ValueError: a part without parameter names; on loading, state of another class of optimizer or of other
            parameters.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = list(optimizers)
        groups = []
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if "param_names" not in group:
                    raise ValueError(f"{type(optimizer).__name__}: build it from (name, parameter) pairs")
                group["optimizer"] = type(optimizer).__name__
                groups.append(group)
        super().__init__(groups, {})
        self._share()

    def _share(self) -> None:
        """Hands the parts this optimizer's state and their slice of its groups."""
        start = 0
        for optimizer in self.optimizers:
            stop = start + len(optimizer.param_groups)
            optimizer.state = self.state
            optimizer.param_groups = self.param_groups[start:stop]
            start = stop

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Runs the closure once, then steps every part."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores every parameter's state by name and keeps this optimizer's own group values."""
        super().load_state_dict(_reordered(state_dict, self.param_groups))
        self._share()


def _reordered(saved: dict[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The saved state, parameter by parameter, under this optimizer's own groups."""
    sources: dict[str, tuple[int, str]] = {}
    for group in saved["param_groups"]:
        for name, index in zip(group.get("param_names", ()), group["params"], strict=True):
            sources[name] = (index, group.get("optimizer", "unknown"))
    state: dict[int, Any] = {}
    renumbered = []
    number = 0
    for group in groups:
        numbers = range(number, number + len(group["params"]))
        number = numbers.stop
        for name, new in zip(group["param_names"], numbers, strict=True):
            if name not in sources:
                raise ValueError(f"the checkpoint has no optimizer state for the parameter {name}")
            old, optimizer = sources.pop(name)
            if optimizer != group["optimizer"]:
                raise ValueError(
                    f"the checkpoint's optimizer for {name} is {optimizer}, the configuration's is {group['optimizer']}"
                )
            if old in saved["state"]:
                state[new] = saved["state"][old]
        renumbered.append({**group, "params": list(numbers)})
    if sources:
        raise ValueError(f"the checkpoint has optimizer state for an unknown parameter, {next(iter(sources))}")
    return {"state": state, "param_groups": renumbered}
