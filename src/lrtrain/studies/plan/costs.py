"""FLOPs of a training step, by what they are for, a multiply-add counted as two."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lrtrain.constraints import Constraint, attached
from lrtrain.nn import Projection
from lrtrain.optim import Slot, stated
from lrtrain.runtime.errors import UserError
from lrtrain.studies.plan.measured_flops import measured_flops
from lrtrain.studies.plan.planned_model import PlannedModel


@dataclass(frozen=True)
class Costs:
    """FLOPs. The first four are of a token, `optimizer` and `constraints` of an optimizer step.

    Attributes:
        forward: Projections, head and attention.
        dense: The same with dense projections.
        backward: Twice the forward pass (arXiv 2204.02311, appendix B).
        recompute: The blocks' forward pass once more, with activation checkpointing.
        optimizer: Averages, orthogonalization and updates.
        constraints: Of each, by its name.
        notes: What was measured, and what is not counted.
    """

    forward: int
    dense: int
    backward: int
    recompute: int
    optimizer: int
    constraints: dict[str, int]
    notes: list[str]

    @property
    def token(self) -> int:
        """Forward and backward pass, without recomputation, as budgets are counted."""
        return self.forward + self.backward

    def per_token(self, tokens: int) -> float:
        """All there is, with optimizer steps of some tokens."""
        return self.token + self.recompute + (self.optimizer + sum(self.constraints.values())) / tokens


def costs(model: PlannedModel, tokens: int, recompute: bool, constraints: Sequence[Constraint] | None) -> Costs:
    """The FLOPs of a model on sequences of some tokens.

    Args:
        model: Decoder and optimizers.
        tokens: Of one sequence.
        recompute: Activation checkpointing.
        constraints: Those that the configuration asks for; None for what the projections need.

    Raises:
        UserError: a constraint that is asked for has nothing to hold.
    """
    decoder = model.decoder
    forward = decoder.flops_per_token(tokens)
    saved = sum(
        2 * m.in_features * m.out_features - m.flops_per_token for m in decoder.modules() if isinstance(m, Projection)
    )
    notes: list[str] = []
    try:
        found = attached(constraints, decoder, model.optimizer)
    except ValueError as error:
        raise UserError(f"trainer.callbacks: SpectralConstraints, {error}") from error
    of_constraints = {name: constraint.step_flops(model.optimizer) for name, constraint in found.items()}
    notes += [f"{name} is not counted: it has no step_flops" for name, spent in of_constraints.items() if spent is None]
    return Costs(
        forward=forward,
        dense=forward + saved,
        backward=2 * forward,
        recompute=forward - 2 * decoder.head_VD.numel() if recompute else 0,
        optimizer=sum(_slot_flops(slot, model, notes) for slot in model.slots),
        constraints={name: spent for name, spent in of_constraints.items() if spent is not None},
        notes=list(dict.fromkeys(notes)),
    )


def _slot_flops(slot: Slot, model: PlannedModel, notes: list[str]) -> int:
    """FLOPs of an optimizer's step as it states them, else as they are measured, which is noted."""
    formula = stated(slot.optimizer, "step_flops")
    held = [(group, parameter) for group in slot.optimizer.param_groups for parameter in group["params"]]
    if formula is not None:
        return sum(int(formula(group, parameter)) for group, parameter in held)
    name, spent, missing = type(slot.optimizer).__name__, 0, set[str]()
    for shape, number in Counter(parameter.shape for _, parameter in held).items():
        each = measured_flops(model.makers[slot.pattern], shape, bool(held[0][0].get("fused")))
        spent += number * each.total
        missing |= each.missing
    lacks = f", without {', '.join(sorted(missing))}, of which no formula is known" if missing else ""
    notes.append(f"{name}: FLOPs measured on a step, since it states no step_flops{lacks}")
    return spent
