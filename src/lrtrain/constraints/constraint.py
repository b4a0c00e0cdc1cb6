"""The base class of what keeps weights in shape around an optimizer step."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

from torch import nn
from torch.optim import Optimizer


class NothingToHoldError(ValueError):
    """The model, or its optimizer, has nothing for a constraint to act on."""


NO_SPECTRAL = "the model has no spectral projection; use lrtrain.nn.SpectralLinear or leave it out"


THAW = "the bound is of a step of both, so let it require a gradient, or list the constraints without this one"


class Constraint(ABC):
    """Acts before and after each optimizer step on the parameters that `attach` has found.

    The constructor takes the user's switches alone, as they stand in the YAML. A subclass says in `attach` what it
    holds, and overrides what it needs of the rest. In a plain loop:

        constraint.attach(model, optimizer)
        loss.backward(); constraint.before_step(optimizer); optimizer.step(); constraint.after_step()

    The optimizer may be a `CombinedOptimizer`: `optim.holders` tells which part has a parameter, and
    `optim.StatedOptimizer` what an optimizer says of itself.
    """

    stands_in_for = ""
    """Name of the constraint that the projections need and that a subclass takes the place of, in a list without it."""

    held: dict[str, Any]
    """What it acts on, by name; each class says what that is: a parameter, a pair, a triple."""

    @abstractmethod
    def attach(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Finds what to hold, once before training. Reads no numbers: a plan attaches to a model without any.

        Raises:
            NothingToHoldError: there is nothing.
            ValueError: there is something that cannot be held. Either message is a line that ends with what to do.
        """

    def hold(self, named: Mapping[str, Any]) -> Self:
        """Takes what to hold by name, as `held` is: in a loop of one's own, in place of `attach`."""
        self.held = dict(named)
        return self

    def before_step(self, optimizer: Optimizer) -> None:  # noqa: B027
        """After the gradients, before clipping and the update."""

    def after_step(self) -> None:  # noqa: B027
        """Right after the update, before anything else sees the weights."""

    def step_flops(self, optimizer: Optimizer) -> int | None:
        """FLOPs of both in one step, for `lrtrain plan`; None: not stated, and the plan says so."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on bit for bit."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: B027
        """Restores what `state_dict` returned."""
