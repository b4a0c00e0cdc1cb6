"""A constraint: what is to hold for the weights after every optimizer step."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrtrain.constraints import Constraint, NothingToHoldError, find_factors


class MyConstraint(Constraint):
    """Columns of the factors are at most `length` long.

    Args:
        length: The largest norm of a column.
    """

    def __init__(self, length: float = 1.0) -> None:
        if length <= 0:
            raise ValueError(f"length {length} must be above 0")
        self.length = length
        self.factors: list[Tensor] = []

    def attach(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Finds what to hold; reads no numbers, because `lrtrain plan` calls it for a model without memory."""
        pairs, _ = find_factors(model)
        self.factors = [factor for pair in pairs.values() for factor in pair]
        if not self.factors:
            raise NothingToHoldError("the model has no factors; use lrtrain.nn.LowRankLinear or leave it out")

    @torch.no_grad()
    def after_step(self) -> None:
        """Runs right after the update, before any log, checkpoint or validation sees the weights."""
        for factor in self.factors:
            factor.mul_((self.length / factor.norm(dim=0).clamp_min(1e-12)).clamp_max(1.0))

    def step_flops(self, optimizer: Optimizer) -> int:
        """For `lrtrain plan`, which otherwise says that it does not count this."""
        return sum(3 * factor.numel() for factor in self.factors)
