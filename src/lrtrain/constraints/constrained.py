"""The optimizer of a whole model with the constraints that its factors need, in one object: for any training loop."""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from lrtrain.constraints.attached import attached, uncovered
from lrtrain.constraints.constraint import Constraint
from lrtrain.constraints.factors import find_factors, spectral_triples
from lrtrain.optim import CombinedOptimizer, LoRAMuon, OptimizerCallable, Spectron

CONSTRAINTS = "constraints"
"""Key of `state_dict` with the constraints' states."""


class ConstrainedOptimizer(CombinedOptimizer):
    """Steps its parts with what constraints do before and right after: `step()` is all that a loop calls.

    Constraints act where `step` does: once an optimizer step whatever the number of accumulated batches, on gradients
    that are clipped already, and not at all where a gradient scaler leaves a step out. Unlike in `lrtrain fit`, loading
    a state restores the groups' values, too, as a loop with a scheduler of torch's expects it of any optimizer.

    Args:
        optimizers: The parts, made of (name, parameter) pairs.
        constraints: By name, attached.
    """

    def __init__(self, optimizers: Sequence[Optimizer], constraints: Mapping[str, Constraint]) -> None:
        super().__init__(optimizers)
        self.constraints = dict(constraints)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "constraints": self.constraints}

    def step_parts(self) -> None:
        self._require_held()
        for constraint in self.constraints.values():
            constraint.before_step(self)
        super().step_parts()
        for constraint in self.constraints.values():
            constraint.after_step()

    def _require_held(self) -> None:
        """Refuses to hold what is not stepped any more, as after a wrapper that put new parameters into the model."""
        own = {id(parameter) for group in self.param_groups for parameter in group["params"]}
        for name, constraint in self.constraints.items():
            for place, held in getattr(constraint, "held", {}).items():
                parameters = [x for x in (held if isinstance(held, tuple) else (held,)) if isinstance(x, Tensor)]
                if any(parameter.requires_grad and id(parameter) not in own for parameter in parameters):
                    raise RuntimeError(
                        f"{name} holds {place}, which this optimizer does not step any more: the model got other "
                        "parameters since (FSDP does that); make the optimizer after it"
                    )

    def state_dict(self) -> dict[str, Any]:
        states = {name: constraint.state_dict() for name, constraint in self.constraints.items()}
        return {**super().state_dict(), CONSTRAINTS: states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the parameters' states by name, the groups' values and the constraints' states.

        Raises:
            ValueError: state of other parameters, of another class of optimizer or of other constraints.
        """
        states = state_dict.get(CONSTRAINTS, {})
        if states.keys() != self.constraints.keys():
            raise ValueError(
                f"the state is of the constraints {', '.join(states) or 'none'}, the optimizer has "
                f"{', '.join(self.constraints) or 'none'}"
            )
        super().load_state_dict(state_dict)
        of_name = {name: group for group in state_dict["param_groups"] for name in group["param_names"]}
        for group in self.param_groups:
            saved = of_name[group["param_names"][0]] if group["params"] else {}
            group.update({key: value for key, value in saved.items() if key not in ("params", "param_names")})
        for name, constraint in self.constraints.items():
            constraint.load_state_dict(states[name])


def optimizer_for(
    model: nn.Module,
    hidden: OptimizerCallable,
    other: OptimizerCallable | None = None,
    constraints: Sequence[Constraint] | None = None,
) -> ConstrainedOptimizer:
    """One optimizer over all trainable parameters of a model that holds low-rank or spectral projections.

    Args:
        model: Any module, as `nn.factorize_` leaves it, with float32 or float64 factors.
        hidden: Makes the optimizer of the factors from (name, parameter) pairs.
        other: Makes that of everything else; AdamW at lr 3e-4, betas (0.9, 0.95), without weight decay when None.
        constraints: All there are to be; when None those that the factors need: step scales or metrics that their
            optimizer takes, and the retraction of orthonormal columns.

    Raises:
        ValueError: the model has no factors that are trained, they are in 16 bit, or an optimizer or a constraint
            refuses them.
    """
    pairs, triples = find_factors(model)[0], spectral_triples(model)
    factors = {id(factor) for group in (*pairs.values(), *triples.values()) for factor in group}
    return _optimizer(model, factors, hidden, other, constraints)


def spectron_for(
    model: nn.Module, lr: float = 0.05, other: OptimizerCallable | None = None, **options: Any
) -> ConstrainedOptimizer:
    """Spectron with spectral renormalization for the pairs A, B of a model, and `other` for everything else.

    Spectral projections, if there are any, are `other`'s, and retracted after each step.

    Args:
        model: Holds low-rank projections.
        lr: Of Spectron: the bound on ‖ΔW‖₂ of one step, 0 < lr ≤ 1.
        other: As in `optimizer_for`.
        options: Further arguments of `optim.Spectron`.

    Raises:
        ValueError: what `optimizer_for` refuses.
    """
    return _pairs_and_rest(model, partial(Spectron, lr=lr, **options), other)


def lora_muon_for(
    model: nn.Module, lr: float = 0.02, other: OptimizerCallable | None = None, **options: Any
) -> ConstrainedOptimizer:
    """LoRA-Muon with each factor's metric for the pairs A, B of a model; arguments as in `spectron_for`."""
    return _pairs_and_rest(model, partial(LoRAMuon, lr=lr, **options), other)


def sct_for(
    model: nn.Module, lr: float = 3e-4, other: OptimizerCallable | None = None, **options: Any
) -> ConstrainedOptimizer:
    """AdamW for U, s and V, with the QR retraction after each step, as SCT has it; `other` for everything else.

    Args:
        model: Holds spectral projections.
        lr: Of U, s and V.
        other: As in `optimizer_for`.
        options: Further arguments of `torch.optim.AdamW`; weight decay is 0 unless they say otherwise.

    Raises:
        ValueError: what `optimizer_for` refuses.
    """
    triples = spectral_triples(model)
    if not triples:
        raise ValueError(f"{type(model).__name__} has no spectral projection: factorize_ it with kind='spectral' first")
    adamw = partial(AdamW, **{"lr": lr, "betas": (0.9, 0.95), "weight_decay": 0.0, **options})
    return _optimizer(model, {id(factor) for triple in triples.values() for factor in triple}, adamw, other)


def _pairs_and_rest(
    model: nn.Module, hidden: OptimizerCallable, other: OptimizerCallable | None
) -> ConstrainedOptimizer:
    pairs, _ = find_factors(model)
    if not pairs:
        raise ValueError(f"{type(model).__name__} has no low-rank projection: call lrtrain.nn.factorize_ first")
    return _optimizer(model, {id(factor) for pair in pairs.values() for factor in pair}, hidden, other)


def _optimizer(
    model: nn.Module,
    factors: set[int],
    hidden: OptimizerCallable,
    other: OptimizerCallable | None,
    constraints: Sequence[Constraint] | None = None,
) -> ConstrainedOptimizer:
    """`hidden` for the factors, given by their identities, `other` for the rest."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    first = [(name, p) for name, p in trained if id(p) in factors]
    rest = [(name, p) for name, p in trained if id(p) not in factors]
    if not first:
        raise ValueError(
            f"{type(model).__name__} has no low-rank or spectral projection to train: call lrtrain.nn.factorize_ first"
        )
    for name, parameter in first:
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"{name} is {parameter.dtype}, in which steps are lost to rounding: load the model with "
                "dtype=torch.float32 and compute in autocast (bf16=True in TrainingArguments)"
            )
    makers = ((hidden, first), (other or partial(AdamW, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.0), rest))
    optimizer = ConstrainedOptimizer([make(named) for make, named in makers if named], {})
    optimizer.constraints = attached(constraints, model, optimizer)
    for line in uncovered(constraints, optimizer.constraints, model, optimizer):
        warnings.warn(line, stacklevel=3)
    return optimizer
