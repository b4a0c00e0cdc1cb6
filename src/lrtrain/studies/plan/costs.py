"""FLOPs of a training step, by what they are for, a multiply-add counted as two."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from lrtrain.constraints import Constraint, attached
from lrtrain.nn import Decoder, LossCallable, projections
from lrtrain.optim import Slot, stated
from lrtrain.runtime.errors import UserError
from lrtrain.studies.plan.activations import loss_errors
from lrtrain.studies.plan.measured_flops import measured_flops
from lrtrain.studies.plan.planned_model import PlannedModel


@dataclass(frozen=True)
class Costs:
    """FLOPs. The first five are of a token, `optimizer` and `constraints` of an optimizer step.

    Attributes:
        forward: Projections, head and attention.
        dense: The same with dense projections.
        backward: Twice the forward pass (arXiv 2204.02311, appendix B).
        recompute: The blocks' forward pass once more, with activation checkpointing.
        loss: What a loss of one's own takes in both passes beyond the next-token loss.
        optimizer: Averages, orthogonalization and updates.
        constraints: Of each, by its name.
        notes: What was measured, and what is not counted.
    """

    forward: int
    dense: int
    backward: int
    recompute: int
    loss: int
    optimizer: int
    constraints: dict[str, int]
    notes: list[str]

    @property
    def token(self) -> int:
        """Forward and backward pass, without recomputation, as budgets are counted."""
        return self.forward + self.backward

    def per_token(self, tokens: int) -> float:
        """All there is, with optimizer steps of some tokens."""
        return self.token + self.recompute + self.loss + (self.optimizer + sum(self.constraints.values())) / tokens


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
    parts = projections(decoder).values()
    saved = sum(2 * part.in_features * part.out_features - part.flops_per_token for part in parts)
    notes: list[str] = []
    try:
        found = attached(constraints, decoder, model.optimizer)
    except ValueError as error:
        raise UserError(f"trainer.callbacks: SpectralConstraints, {error}") from error
    of_constraints = {name: constraint.step_flops(model.optimizer) for name, constraint in found.items()}
    notes += [f"{name} is not counted: it has no step_flops" for name, spent in of_constraints.items() if spent is None]
    head = 2 * decoder.head_VD.numel()
    return Costs(
        forward=forward,
        dense=forward + saved,
        backward=2 * forward,
        recompute=forward - head if recompute else 0,
        loss=0 if model.loss is None else _loss_flops(decoder, model.loss, tokens) - 3 * head,
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


def _loss_flops(decoder: Decoder, loss: LossCallable, tokens: int) -> int:
    """FLOPs of a token in a loss's forward and backward pass, those of its matrix products on fake tensors."""
    vocabulary, width = decoder.head_VD.shape
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, fake, loss_errors():
        hidden = torch.empty(1, tokens, width, requires_grad=True)
        head = torch.empty(vocabulary, width, requires_grad=True)
        ids = torch.zeros(1, tokens, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            loss(hidden, head, ids, ids).backward()
    return counter.get_total_flops() // tokens
