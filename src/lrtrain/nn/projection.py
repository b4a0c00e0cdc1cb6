"""What the decoder, the optimizers and the constraints may know of a projection."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

LinearCallable = Callable[[int, int], nn.Module]
"""(in_features, out_features) -> a projection. In YAML a class path with the remaining arguments."""


def initial_std(std: float | None, in_features: int) -> float:
    """The standard deviation of a dense draw: 1/√in_features when null, which keeps the variance of the input.

    Raises:
        ValueError: it is negative or not finite.
    """
    if std is None:
        return in_features**-0.5
    if not 0 <= std < math.inf:
        raise ValueError(f"std must be finite and not negative, got {std}")
    return std


class Projection(nn.Module, ABC):
    """A linear map y = W x without bias, however W is written.

    A new parameterization is one file with one subclass; its structure is stated as data (`factor_pairs`,
    `orthonormal`, `spectral_triples`), so that no optimizer and no constraint has to know the class. A map that is not
    linear, or has no W, is a plain `nn.Module`, which may have any of the same methods and attributes.

    Attributes:
        training_callback: Class path of the Lightning callback that it trains with; `CausalLM` attaches it.
        deletable: Names of parameters that training may delete.
        not_compiled: Why `model.compile` is refused; empty where it is not.
        own_scale: Whether the initial weight has a scale of its own, which a decoder's `initial_scale` may not change.
    """

    training_callback: ClassVar[str] = ""
    deletable: ClassVar[tuple[str, ...]] = ()
    not_compiled: ClassVar[str] = ""
    own_scale: bool = False

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) -> (…, out_features)."""

    @abstractmethod
    def materialize(self) -> Tensor:
        """The dense weight W (out_features, in_features) that this projection stands for."""

    def factor_pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Pairs (A, B) with A (out, r) and B (in, r) whose product A Bᵀ is the weight."""
        return []

    def orthonormal(self) -> list[nn.Parameter]:
        """Parameters (features, r) whose columns must stay orthonormal."""
        return []

    def spectral_triples(self) -> list[tuple[nn.Parameter, nn.Parameter, nn.Parameter]]:
        """Triples (U, s, V) with U (in, r), s (r), V (out, r) whose product V diag(s) Uᵀ is the weight."""
        return []

    def before_load(self, saved: Collection[str]) -> None:
        """Prepares for loading a state; `saved` has its names of this projection, which may lack deleted parameters."""

    @property
    @abstractmethod
    def flops_per_token(self) -> int:
        """Forward FLOPs of one token, a multiply-add counted as two."""

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def as_projections(linear: LinearCallable) -> LinearCallable:
    """Marks what `linear` makes as projections, so that `projections` finds them.

    A plain module is given `in_features` and `out_features` and, where it states none, `flops_per_token`: those of the
    matrix products in its forward pass.

    Raises:
        ValueError: (by the result) not a module of these features, or one whose FLOPs cannot be counted.
    """

    def make(in_features: int, out_features: int) -> nn.Module:
        try:
            module = linear(in_features, out_features)
        except TypeError as error:
            raise ValueError(f"a projection is made of (in_features, out_features): {error}") from error
        if isinstance(module, Projection):
            return module
        name = f"{type(module).__module__}.{type(module).__qualname__}"
        if not isinstance(module, nn.Module):
            raise ValueError(f"{name} is no torch.nn.Module, and a projection is one")
        stated: Any = module
        stated.is_projection, stated.in_features, stated.out_features = True, in_features, out_features
        if not hasattr(module, "flops_per_token"):
            stated.flops_per_token = _counted_flops(module, name, in_features, out_features)
        return module

    return make


def override(module: nn.Module, makers: Mapping[str, LinearCallable]) -> None:
    """Replaces each projection whose name a pattern matches by one of the pattern's maker; the first that matches wins.

    Raises:
        ValueError: a pattern is the first for no projection.
    """
    unused = set(makers)
    for name, old in projections(module).items() if makers else ():
        if (pattern := next((p for p in makers if fnmatchcase(name, p)), None)) is not None:
            parent, _, last = name.rpartition(".")
            setattr(
                module.get_submodule(parent), last, as_projections(makers[pattern])(old.in_features, old.out_features)
            )
            unused.discard(pattern)
    if unused:
        raise ValueError(f"overrides: the pattern {min(unused)!r} matches no projection that is still free")


def _counted_flops(module: nn.Module, name: str, in_features: int, out_features: int) -> int:
    """FLOPs of the matrix products for one token, from a forward pass without data."""
    state = {key: torch.empty_like(x, device="meta") for key, x in module.state_dict(keep_vars=True).items()}
    x = torch.empty(1, 1, in_features, device="meta")
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            y = functional_call(module, state, (x,))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the FLOPs of {name} cannot be counted ({reason}): state flops_per_token in it") from error
    if y.shape != (1, 1, out_features):
        raise ValueError(f"{name} makes {tuple(y.shape)} of (1, 1, {in_features}): expected (1, 1, {out_features})")
    flops = counter.get_total_flops()
    if not flops:
        raise ValueError(f"{name} has no matrix product whose FLOPs could be counted: state flops_per_token in it")
    return flops


def projections(module: nn.Module) -> dict[str, Any]:
    """Finds name -> projection, in the module's order: each `Projection`, and what `as_projections` marked.

    All have `in_features`, `out_features` and `flops_per_token`; a plain module may have nothing else. A projection
    inside another one is left out, as a part of it.
    """
    found: dict[str, Any] = {}
    inside: str | None = None
    for name, child in module.named_modules():
        if inside is not None and name.startswith(inside):
            continue
        if isinstance(child, Projection) or getattr(child, "is_projection", False):
            found[name] = child
            inside = f"{name}." if name else ""
    return found


def hidden_parameters(module: nn.Module) -> set[str]:
    """Names of the projections' parameters, which the slot `hidden` trains."""
    return {name for path, child in projections(module).items() for name, _ in child.named_parameters(prefix=path)}


def deleted_parameters(module: nn.Module) -> set[str]:
    """Names of the parameters that training has deleted."""
    stated = [(path, child, getattr(child, "deletable", ())) for path, child in module.named_modules()]
    return {f"{path}.{name}" for path, child, names in stated for name in names if getattr(child, name) is None}


def before_load(module: nn.Module, saved: Iterable[str]) -> None:
    """Calls `before_load` of every projection inside a module, with its part of the names of a state."""
    names = list(saved)
    for path, child in module.named_modules():
        if adapt := getattr(child, "before_load", None):
            start = f"{path}." if path else ""
            adapt({name.removeprefix(start) for name in names if name.startswith(start)})
