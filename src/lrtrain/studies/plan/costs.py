"""FLOPs of a training step, by what they are for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lrtrain.constraints import spectral_triples, structure
from lrtrain.constraints.renormalize import takes_step_scale
from lrtrain.nn import Projection
from lrtrain.studies.plan import flops
from lrtrain.studies.plan.planned_model import PlannedModel


@dataclass(frozen=True)
class Costs:
    """FLOPs. The first four are of a token, the others of an optimizer step.

    Attributes:
        forward: Projections, head and attention.
        dense: The same with dense projections.
        backward: Twice the forward pass.
        recompute: The blocks' forward pass once more, with activation checkpointing.
        optimizer: Averages, orthogonalization and updates.
        renormalize: Power iteration, or the strict optimizer's bounds.
        retract: Retraction of the orthonormal parameters.
    """

    forward: int
    dense: int
    backward: int
    recompute: int
    optimizer: int
    renormalize: int
    retract: int

    @property
    def token(self) -> int:
        """Forward and backward pass, without recomputation, as budgets are counted."""
        return self.forward + self.backward

    def per_token(self, tokens: int) -> float:
        """All there is, with optimizer steps of some tokens."""
        return self.token + self.recompute + (self.optimizer + self.renormalize + self.retract) / tokens


def costs(model: PlannedModel, tokens: int, recompute: bool, constraints: Mapping[str, Any]) -> Costs:
    """The FLOPs of a model on sequences of some tokens.

    Args:
        model: Decoder and optimizers.
        tokens: Of one sequence.
        recompute: Activation checkpointing.
        constraints: The arguments of the configuration's `SpectralConstraints`, if it has any.
    """
    decoder = model.decoder
    forward = decoder.flops_per_token(tokens)
    saved = sum(
        2 * m.in_features * m.out_features - m.flops_per_token for m in decoder.modules() if isinstance(m, Projection)
    )
    owner: dict[Tensor, Any] = {}
    optimizer = 0
    for slot in model.slots:
        for group in slot.optimizer.param_groups:
            for parameter in group["params"]:
                owner[parameter] = slot.optimizer
                optimizer += flops.optimizer_flops(type(slot.optimizer).__name__, group, parameter)
    pairs, orthonormal = structure(decoder)
    factors = [x for pair in pairs.values() for x in pair if takes_step_scale(owner[x])]
    renormalize = 0
    if constraints.get("renormalize") is not False:
        renormalize = sum(
            (flops.norm_bound_flops if getattr(owner[x], "strict", False) else flops.power_iteration_flops)(*x.shape)
            for x in factors
        )
    retract = 0
    if constraints.get("retract") is not False:
        alone = set(orthonormal.values())
        if constraints.get("preserve_function"):
            for u, _, v in spectral_triples(decoder).values():
                retract += flops.preserving_flops(u.shape[0], v.shape[0], u.shape[1])
                alone -= {u, v}
        retract += sum(flops.retraction_flops(*x.shape) for x in alone)
    head = 2 * decoder.head_VD.numel()
    return Costs(
        forward=forward,
        dense=forward + saved,
        backward=2 * forward,
        recompute=forward - head if recompute else 0,
        optimizer=optimizer,
        renormalize=renormalize,
        retract=retract,
    )
