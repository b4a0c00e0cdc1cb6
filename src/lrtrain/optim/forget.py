"""Taking parameters out of an optimizer."""

from collections.abc import Iterable

from torch import Tensor
from torch.optim import Optimizer


def forget(optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
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
