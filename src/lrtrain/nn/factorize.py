"""The linear layers of any model as low-rank or spectral projections, in place, and back."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn

from lrtrain.nn.decoder import Decoder
from lrtrain.nn.dense import DenseLinear
from lrtrain.nn.factorized import resolve_rank
from lrtrain.nn.noted_ranks import KINDS, Biased, is_ours, note_ranks, replace_module, with_bias
from lrtrain.nn.projection import Projection
from lrtrain.nn.rewriting import as_factors, dense_weight

Kind = Literal["low_rank", "spectral"]


@dataclass(frozen=True)
class Factorized:
    """A layer that `factorize_` has replaced: name, rank, the share of Σσ² that it holds; parameters, then and now."""

    name: str
    rank: int
    energy: float
    before: int
    after: int


@dataclass(frozen=True)
class Factorization:
    """What `factorize_` has done: the layers that it replaced, and those that it left with the reason, by name."""

    layers: list[Factorized]
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{layer.name}: rank {layer.rank}, {layer.energy:.1%} of Σσ²" for layer in self.layers]
        lines += [f"{name}: left, {reason}" for name, reason in self.left.items()]
        before, after = (sum(getattr(one, when) for one in self.layers) for when in ("before", "after"))
        larger = sum(one.after > one.before for one in self.layers)
        more = f"; {larger} have more than before, since their rank is near the smaller side" if larger else ""
        return "\n".join([*lines, f"{len(self.layers)} layers: {before:,} parameters, now {after:,}{more}"])


def factorize_(
    model: nn.Module,
    rank_ratio: float | None = None,
    rank: int | None = None,
    energy: float | None = None,
    kind: Kind = "low_rank",
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
) -> Factorization:
    """Replaces linear layers by projections that are the best approximations of their weights, in place.

    Taken are `nn.Linear`s, also those with a bias, and this package's projections of another kind. Left are the output
    head, unless `include` has its name in full; weights that are shared; and subclasses of `nn.Linear`, which compute
    something else or are read from outside. Device, dtype, training mode and `requires_grad` stay. A model that is as a
    whole on the meta device, for planning, gets factors there, and no energies.

    A transformers model notes its ranks in `config.quantization_config`, so that `save_pretrained` writes them and,
    after `lrtrain.checkpoint.huggingface.factorized_models.register()`, `from_pretrained` makes the same layers. Each
    has an empty buffer `weight` then: whatever knows no factors refuses its shape, and does not draw a weight.

    Args:
        model: Any module.
        rank_ratio: r = round(rank_ratio · in_features), at most min(in, out); or give rank, or energy.
        rank: r of every layer, at most min(in, out) of each.
        energy: The smallest r that holds this share of a layer's Σσ².
        kind: `low_rank` is W = A Bᵀ, `spectral` W = V diag(s) Uᵀ.
        include: Patterns of the names to take (`*.mlp.*`); all when None.
        exclude: Patterns of names to leave.

    Returns:
        What was replaced and what was left, in the model's order; as text, a line each.

    Raises:
        ValueError: nothing is there to replace, a pattern matches no linear layer, a layer whose name `include` has in
            full cannot be taken, or a rank or a weight cannot be used. The model is as it was then.
    """
    if sum(size is not None for size in (rank_ratio, rank, energy)) != 1:
        raise ValueError(f"give one of rank_ratio, rank, energy: {rank_ratio=}, {rank=}, {energy=}")
    if kind not in KINDS:
        raise ValueError(f"kind must be low_rank or spectral, got {kind!r}")
    noted = getattr(getattr(model, "config", None), "quantization_config", None)
    if noted is not None and not is_ours(noted) and not _is_unpacked(model, noted):
        raise ValueError("the model is quantized: load its weights as they were before that")
    names, left = _chosen(model, kind, _patterns(include), _patterns(exclude) or [])
    made: dict[str, tuple[nn.Module, Factorized]] = {}
    planned = all(parameter.is_meta for parameter in model.parameters())
    for name in names:
        try:
            made[name] = _factorized(name, model.get_submodule(name), kind, rank_ratio, rank, energy, planned)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    for name, (layer, _) in made.items():
        replace_module(model, name, layer)
    note_ranks(model)
    return Factorization([found for _, found in made.values()], left)


@torch.no_grad()
def merge_(model: nn.Module) -> list[str]:
    """Replaces projections by `nn.Linear`s of the same weight and bias, in place, and returns their names.

    A transformers model saves as a stock one again.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, Biased | Projection)]
    names = [name for name in names if name and not any(name.startswith(f"{above}.") for above in names)]
    for name in names:
        module: Any = model.get_submodule(name)
        projection = module.projection if isinstance(module, Biased) else module
        weight, trained = dense_weight(projection), any(p.requires_grad for p in module.parameters())
        with torch.device("meta"):
            linear = nn.Linear(module.in_features, module.out_features, bias=isinstance(module, Biased))
        linear.weight = nn.Parameter(weight.clone(), trained)
        if isinstance(module, Biased):
            linear.bias = module.bias
        replace_module(model, name, linear.train(module.training))
    note_ranks(model)
    return names


def _is_unpacked(model: nn.Module, noted: Any) -> bool:
    """Whether a transformers model was read from a GGUF file, and its weights are ordinary ones since."""
    method = noted.get("quant_method") if isinstance(noted, dict) else getattr(noted, "quant_method", None)
    packed = any(not parameter.is_floating_point() for parameter in model.parameters())
    special = any(isinstance(module, nn.Linear) and type(module) is not nn.Linear for module in model.modules())
    return getattr(method, "value", method) == "gguf" and not packed and not special


def _chosen(
    model: nn.Module, kind: str, include: list[str] | None, exclude: list[str]
) -> tuple[list[str], dict[str, str]]:
    """Names of the layers to replace, and of those to leave with the reason; refuses patterns that match none."""
    layers = dict(_linear_layers(model, kind))
    for pattern in [*(include or ()), *exclude]:
        if not any(fnmatchcase(name, pattern) for name in layers):
            names = ", ".join([*list(layers)[:3], *["…"] * (len(layers) > 3)]) or "none"
            raise ValueError(f"the pattern {pattern!r} matches no linear layer; there are: {names}")
    shared, head = _shared(model), _output_head(model)
    chosen, left = [], {}
    for name, module in layers.items():
        if include is not None and not any(fnmatchcase(name, pattern) for pattern in include):
            continue
        if any(fnmatchcase(name, pattern) for pattern in exclude):
            continue
        in_full = include is not None and name in include
        others = shared.get(id(getattr(module, "weight", None)), set()) - {f"{name}.weight"}
        reason = ""
        if others:
            reason = f"it shares its weight with {min(others)}"
        elif isinstance(module, nn.Linear) and type(module) is not nn.Linear:
            reason = f"{type(module).__name__} is more than an nn.Linear"
        elif module is head and not in_full:
            reason = "it is the output head"
        if reason and in_full:
            raise ValueError(f"{name} cannot be replaced: {reason}; leave it out")
        if reason:
            left[name] = reason
        else:
            chosen.append(name)
    if not chosen:
        why = "; ".join(f"{name}: {reason}" for name, reason in left.items()) or "it has none that is chosen"
        raise ValueError(f"{type(model).__name__} has no linear layer to replace ({why})")
    return chosen, left


def _linear_layers(model: nn.Module, kind: str) -> Iterator[tuple[str, nn.Module]]:
    """`nn.Linear`s, and projections of this package that are of another kind; none inside a projection."""
    inside = ""
    for name, module in model.named_modules():
        if not name or (inside and name.startswith(inside)):
            continue
        own = module.projection if isinstance(module, Biased) else module
        other = type(own) in (DenseLinear, *KINDS.values()) and type(own) is not KINDS[kind]
        if isinstance(module, nn.Linear) or other:
            yield name, module
        if isinstance(own, Projection):
            inside = f"{name}."


def _shared(model: nn.Module) -> dict[int, set[str]]:
    """Identity of a weight -> its names, of those that have several."""
    found: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), set()).add(name)
    return {key: names for key, names in found.items() if len(names) > 1}


def _output_head(model: Any) -> nn.Module | None:
    """The layer that makes logits, as a decoder or a transformers model tells it."""
    if isinstance(model, Decoder):
        return model.head
    tell = getattr(model, "get_output_embeddings", None)
    return tell() if callable(tell) else None


def _factorized(
    name: str,
    old: Any,
    kind: str,
    rank_ratio: float | None,
    rank: int | None,
    energy: float | None,
    planned: bool,
) -> tuple[nn.Module, Factorized]:
    first = next(old.parameters())
    if first.is_meta and (energy is not None or not planned):
        raise ValueError("its weight is on the meta device: load the model first, without device_map")
    if energy is None:
        rank = resolve_rank(old.in_features, old.out_features, rank, rank_ratio)
    if first.is_meta:
        assert rank is not None
        with torch.device("meta"):
            empty = KINDS[kind](old.in_features, old.out_features, rank=rank).to(first.dtype)
        return _told(name, _like(empty, old), old, rank, math.nan)
    source = old.weight if isinstance(old, nn.Linear) else old.projection if isinstance(old, Biased) else old
    layer, kept = as_factors(source, KINDS[kind], rank, energy, first.dtype)
    return _told(name, _like(layer, old), old, layer.rank, kept.energy)


def _told(name: str, new: nn.Module, old: nn.Module, rank: int, energy: float) -> tuple[nn.Module, Factorized]:
    before, after = (sum(p.numel() for p in module.parameters()) for module in (old, new))
    return new, Factorized(name, rank, energy, before, after)


def _like(layer: nn.Module, old: nn.Module) -> nn.Module:
    """A projection with the bias, the mode and the gradients of the layer that it replaces."""
    layer.requires_grad_(any(p.requires_grad for name, p in old.named_parameters() if name != "bias"))
    return with_bias(layer, old).train(old.training)


def _patterns(given: str | Sequence[str] | None) -> Any:
    return given if given is None else [given] if isinstance(given, str) else list(given)
