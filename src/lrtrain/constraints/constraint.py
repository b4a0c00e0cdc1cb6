"""What every constraint answers to."""

from typing import Any, Protocol

from torch.optim import Optimizer


class Constraint(Protocol):
    """Called around each optimizer step, once the gradients are there.

    In a plain loop: `loss.backward(); constraint.before_step(optimizer); optimizer.step(); constraint.after_step()`.
    """

    def before_step(self, optimizer: Optimizer) -> None:
        """After the gradients, before clipping and the update."""

    def after_step(self) -> None:
        """Right after the update, before anything else sees the weights."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on bit for bit."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
