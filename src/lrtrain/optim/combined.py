"""Several optimizers as one, and taking parameters out of one."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lrtrain.linalg import spread


class CombinedOptimizer(Optimizer):
    """Steps several optimizers over disjoint parameters as if they were one.

    The parameter groups are the very dictionaries of the parts, and all parts share one `state`, so schedulers,
    clipping and checkpoints see an ordinary optimizer. Build the parts from `(name, parameter)` pairs: a checkpoint is
    matched by name, whatever order it was written in, and whole tensors are cut as their parameter is.

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
        self.skip_step = False
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles; torch's own leaves out what a subclass adds."""
        return {**super().__getstate__(), "optimizers": self.optimizers, "skip_step": self.skip_step}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Takes the groups of the parts, in the constructor alone: which part would step another is not said."""
        if hasattr(self, "skip_step"):
            raise ValueError("CombinedOptimizer: add the group to one of the optimizers before they are combined")
        super().add_param_group(param_group)

    def _share(self) -> None:
        """Hands the parts this optimizer's state and their slice of its groups."""
        start = 0
        for optimizer in self.optimizers:
            stop = start + len(optimizer.param_groups)
            optimizer.state = self.state
            optimizer.param_groups = self.param_groups[start:stop]
            start = stop

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Runs the closure once, then steps every part; with `skip_step`, which the closure may set, none of them."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self.skip_step:
            self.step_parts()
        self.skip_step = False
        return loss

    def step_parts(self) -> None:
        """Steps every part; the gradients are there."""
        for optimizer in self.optimizers:
            optimizer.step()

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
        for name, parameter, new in zip(group["param_names"], group["params"], numbers, strict=True):
            if name not in sources:
                raise ValueError(f"the checkpoint has no optimizer state for the parameter {name}")
            old, optimizer = sources.pop(name)
            if optimizer != group["optimizer"]:
                raise ValueError(
                    f"the checkpoint's optimizer for {name} is {optimizer}, the configuration's is {group['optimizer']}"
                )
            if old in saved["state"]:
                state[new] = {key: shard_like(value, parameter) for key, value in saved["state"][old].items()}
        renumbered.append({**group, "params": list(numbers)})
    if sources:
        raise ValueError(f"the checkpoint has optimizer state for an unknown parameter, {next(iter(sources))}")
    return {"state": state, "param_groups": renumbered}


def shard_like(value: Any, parameter: Tensor) -> Any:
    """A whole tensor of a sharded parameter's shape, sharded as that is; everything else as it is. No collective."""
    whole = isinstance(value, Tensor) and not isinstance(value, DTensor)
    if not whole or not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return spread(value.to(parameter.device), parameter)


def remove_parameters(optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
    """Removes parameters and their states from an optimizer, so that nothing of them is stepped, saved or kept alive.

    Its groups stay, even when they are left empty: schedules and the parts of a `CombinedOptimizer` count them.
    """
    gone = set(parameters)
    for group in optimizer.param_groups:
        kept = [index for index, parameter in enumerate(group["params"]) if parameter not in gone]
        for key in {"params", "param_names"} & group.keys():
            group[key] = [group[key][index] for index in kept]
    for parameter in gone:
        optimizer.state.pop(parameter, None)
