"""What an optimizer states of itself, so that neither a constraint nor a plan has to know its class."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Muon, NAdam, Optimizer, RAdam

from lrtrain.linalg.flops import direct_newton_schulz_flops


class StatedOptimizer(Protocol):
    """What an optimizer may state in its class. Each part is optional, and nothing need be imported or inherited:

        class Momentum(torch.optim.Optimizer):
            first_moments = ("velocity",)
            second_moments = ()

            def step_flops(self, group, parameter):
                return 4 * parameter.numel()

    A constraint that needs what is not stated refuses in a line; `lrtrain plan` measures FLOPs that are not stated. The
    bytes of state are never stated: a plan steps the optimizer and looks. torch's optimizers are described in `TORCH`.
    """

    first_moments: Sequence[str]
    """Keys of `state[parameter]` that are averages of the gradient: linear in it, in the parameter's shape."""

    second_moments: Sequence[str]
    """Keys of `state[parameter]` that are averages of the gradient's squares, number by number."""

    step_scale: dict[Tensor, Tensor]
    """Parameter -> number (0-d) that its next step is multiplied by; constraints fill it, a step empties it."""

    column_scale: dict[Tensor, Tensor]
    """Parameter (m, k) -> c (k): the next step is that of M diag(c), times diag(c); filled and emptied likewise."""

    partner_root: dict[Tensor, Tensor]
    """Factor X (m, r) of a pair -> T (r, r) with T Tᵀ = (YᵀY)⁻¹ of the other one, Y; filled and emptied likewise."""

    cross_norm: dict[Tensor, Tensor]
    """Factor of a pair -> an upper bound (0-d) of the product of both factors' ‖T‖₂, if strict; likewise."""

    strict: bool
    """The step scales have to bound the step, so they come from upper bounds of the norms and not from estimates."""

    def step_flops(self, group: dict[str, Any], parameter: Tensor) -> int:
        """FLOPs of a step of one parameter, maybe on the meta device, under the settings of its group."""


class UnstatedError(ValueError):
    """An optimizer does not state what is asked of it."""


def stated(optimizer: Optimizer, name: str) -> Any:
    """What an optimizer states under a name of `StatedOptimizer`, None where it does not."""
    return getattr(TORCH.get(type(optimizer), optimizer), name, None)


Takes = Literal["step_scale", "column_scale", "partner_root"]


def holders(optimizer: Optimizer, takes: Takes | None = None) -> dict[Tensor, Any]:
    """parameter -> the optimizer, or the part of a `CombinedOptimizer`, that holds it; those alone that take these."""
    return {
        parameter: part
        for part in getattr(optimizer, "optimizers", [optimizer])
        if takes is None or isinstance(stated(part, takes), dict)
        for group in part.param_groups
        for parameter in group["params"]
    }


Order = Literal["first_moments", "second_moments"]
ORDERS: tuple[Order, ...] = ("first_moments", "second_moments")


def require_moments(optimizer: Optimizer, parameters: Mapping[str, Tensor], *orders: Order) -> None:
    """Raises UnstatedError where the optimizer of a named parameter does not state these moments."""
    held_by = holders(optimizer)
    for name, parameter in parameters.items():
        for order in orders:
            if parameter in held_by and stated(held_by[parameter], order) is None:
                raise UnstatedError(
                    f"{type(held_by[parameter]).__name__}, the optimizer of {name}, does not state its {order}: write "
                    f"the keys of its state into the class, as in {order} = ('momentum',), or () for none"
                )


def moments(optimizer: Optimizer, parameters: Sequence[Tensor], order: Order) -> list[tuple[int, Tensor]]:
    """(index of the parameter, one of its averages), as far as the optimizer keeps any.

    Raises:
        UnstatedError: the optimizer keeps something of a parameter's shape and states it as neither of the two moments.
    """
    held_by = holders(optimizer)
    found = []
    for index, parameter in enumerate(parameters):
        state = optimizer.state.get(parameter, {}) if parameter in held_by else {}
        kept = {key: x for key, x in state.items() if isinstance(x, Tensor) and x.shape == parameter.shape}
        names = {each: tuple(stated(held_by[parameter], each) or ()) for each in ORDERS} if kept else {}
        for key in kept.keys() - set().union(*names.values()):
            raise UnstatedError(
                f"{type(held_by[parameter]).__name__} keeps {key!r} for each parameter and states it neither in "
                "first_moments nor in second_moments, so it would not follow the parameter: add it there"
            )
        found += [(index, kept[key]) for key in kept if key in names[order]]
    return found


MOMENTUM = 5
"""FLOPs a number of an averaged gradient and the update; `LOOK_AHEAD` and `SQUARES` are Nesterov's and an average of
squares'."""
LOOK_AHEAD = 3
SQUARES = 6
ADAM = 15
"""FLOPs a number: weight decay 2, both averages 3 + 4, their corrections and root 3, the update 3."""


class Stated(NamedTuple):
    """What a class of torch's would state."""

    first_moments: tuple[str, ...]
    second_moments: tuple[str, ...]
    step_flops: Callable[[dict[str, Any], Tensor], int] | None = None


def _muon_flops(group: dict[str, Any], parameter: Tensor) -> int:
    m, r = sorted(parameter.shape, reverse=True)
    elementwise = (MOMENTUM + LOOK_AHEAD * bool(group["nesterov"])) * parameter.numel()
    return elementwise + int(group["ns_steps"]) * direct_newton_schulz_flops(m, r)


_ADAM = Stated(("exp_avg",), ("exp_avg_sq", "max_exp_avg_sq"), lambda _, parameter: ADAM * parameter.numel())

TORCH: dict[type[Optimizer], Any] = {
    SGD: Stated(("momentum_buffer",), (), lambda group, p: (4 if group["momentum"] else 2) * p.numel()),
    Adam: _ADAM,
    AdamW: _ADAM,
    NAdam: Stated(("exp_avg",), ("exp_avg_sq",)),
    RAdam: Stated(("exp_avg",), ("exp_avg_sq",)),
    Muon: Stated(("momentum_buffer",), (), _muon_flops),
}
"""torch's optimizers as far as they are described; a class that is not here, or derives from one, states for itself."""
