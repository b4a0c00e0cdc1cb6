"""What a model takes: parameters by kind, and FLOPs of a training step by purpose, a multiply-add counted as two."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from lrtrain.constraints import attached, uncovered
from lrtrain.nn import Decoder, LossCallable, projections
from lrtrain.optim import Slot, stated
from lrtrain.runtime.errors import UserError
from lrtrain.studies.plan.activations import loss_errors
from lrtrain.studies.plan.optimizer_step import measured_flops
from lrtrain.studies.plan.plan_settings import Run
from lrtrain.studies.plan.planned_model import PlannedModel

KINDS = ("embedding", "head", "norms", "attention", "mlp")
OTHER = "other"
"""What a decoder of one's own has beside these."""


@dataclass(frozen=True)
class Kind:
    """A kind of parameters.

    Attributes:
        name: One of `KINDS`, or `OTHER`.
        form: How its weights are written: the projections' classes, `dense` for what is no projection, `tied` for a
            head that is the embedding.
        parameters: Their number.
        dense: Their number with every projection dense.
    """

    name: str
    form: str
    parameters: int
    dense: int


def parameters_by_kind(decoder: Decoder) -> list[Kind]:
    """Every parameter of a decoder, on any device, counted under one kind."""
    count, dense = Counter[str](), Counter[str]()
    forms: dict[str, list[str]] = {"head": ["tied"]} if decoder.head is None else {}
    parts = projections(decoder)
    for name, projection in parts.items():
        dense[_kind(name)] += projection.in_features * projection.out_features
        forms.setdefault(_kind(name), []).append(type(projection).__name__)
    inside = {parameter for projection in parts.values() for parameter in projection.parameters()}
    for name, parameter in decoder.named_parameters():
        count[_kind(name)] += parameter.numel()
        dense[_kind(name)] += 0 if parameter in inside else parameter.numel()
    return [
        Kind(name, ", ".join(dict.fromkeys(forms.get(name, ["dense"]))), count[name], dense[name])
        for name in (*KINDS, OTHER)
        if name in KINDS or count[name]
    ]


def _kind(name: str) -> str:
    parts = name.split(".")
    known = next((kind for kind in ("embedding", "head", "attention", "mlp") if kind in parts), None)
    return known or ("norms" if any("norm" in part for part in parts) else OTHER)


@dataclass(frozen=True)
class Costs:
    """FLOPs by purpose: the first five per token, `optimizer` and `constraints` per optimizer step.

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
        """Forward and backward FLOPs per token, without recomputation: the convention of budgets."""
        return self.forward + self.backward


def costs(model: PlannedModel, run: Run) -> Costs:
    """The FLOPs of a model in a run.

    Raises:
        UserError: a constraint that is asked for has nothing to hold.
    """
    decoder = model.decoder
    forward, head = decoder.flops_per_token(run.tokens), 2 * decoder.head_VD.numel()
    parts = projections(decoder).values()
    saved = sum(2 * part.in_features * part.out_features - part.flops_per_token for part in parts)
    try:
        found = attached(run.constraints, decoder, model.optimizer)
    except ValueError as error:
        raise UserError(f"trainer.callbacks: SpectralConstraints, {error}") from error
    of_constraints = {name: constraint.step_flops(model.optimizer) for name, constraint in found.items()}
    notes = uncovered(run.constraints, found, decoder, model.optimizer)
    notes += [f"{name} is not counted: it has no step_flops" for name, spent in of_constraints.items() if spent is None]
    return Costs(
        forward=forward,
        dense=forward + saved,
        backward=2 * forward,
        recompute=forward - head if run.recompute else 0,
        loss=0 if model.loss is None else _loss_flops(decoder, model.loss, run.tokens) - 3 * head,
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
