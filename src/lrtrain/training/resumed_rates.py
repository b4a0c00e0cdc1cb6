"""Learning rates of a resumed run: the configuration decides, and says where that makes them jump."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lrtrain.optim import Slot


def saved_rates(checkpoint: Mapping[str, Any]) -> dict[str, float]:
    """Each parameter's learning rate in the next step of the run that a checkpoint is of, by name."""
    groups = [group for state in checkpoint.get("optimizer_states", ()) for group in state["param_groups"]]
    return {name: float(group["lr"]) for group in groups for name in group.get("param_names", ())}


def jumps(slots: Sequence[Slot], saved: Mapping[str, float], step: int) -> str:
    """A line that names the slots which go on after `step` steps at another rate than they would have; or nothing."""
    found = []
    for slot in slots:
        group = slot.optimizer.param_groups[0]
        before = next((saved[name] for name in group["param_names"] if name in saved), None)
        if before is not None and not math.isclose(before, group["lr"], rel_tol=1e-6):
            found.append(f"lr/{slot.pattern} {group['lr']:.3g} instead of {before:.3g}")
    if not found:
        return ""
    return (
        f"from step {step} on: {', '.join(found)}; the rate, the schedule or the length of the run (trainer.max_steps) "
        "is another than the checkpoint's"
    )
