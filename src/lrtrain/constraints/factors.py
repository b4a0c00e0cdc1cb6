"""Finds the factors of a model: what its projections state of themselves, whatever their class."""

from collections.abc import Container
from typing import Any

from torch import Tensor, nn

from lrtrain.constraints.constraint import THAW, NothingToHoldError


def find_factors(module: nn.Module) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Finds name -> (A, B) and name -> orthonormal parameter: what `factor_pairs` and `orthonormal` of modules say."""
    pairs, orthonormal = (_stated(module, what) for what in ("factor_pairs", "orthonormal"))
    named_pairs = {f"{name}.{index}" if index else name: pair for name, index, pair in pairs}
    return named_pairs, {f"{name}.{index}": parameter for name, index, parameter in orthonormal}


def pairs_taken(module: nn.Module, taking: Container[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Finds name -> (A, B) of the pairs that an optimizer takes.

    Raises:
        NothingToHoldError: the module has no pairs.
        ValueError: of a pair it takes one factor alone.
    """
    pairs, _ = find_factors(module)
    if not pairs:
        raise NothingToHoldError("the model has no pair A, B; use lrtrain.nn.LowRankLinear or leave it out")
    taken = {name: pair for name, pair in pairs.items() if any(factor in taking for factor in pair)}
    for name, pair in taken.items():
        for side, factor in zip("AB", pair, strict=True):
            if factor not in taking and not factor.requires_grad:
                raise ValueError(f"{side} of {name} is frozen: {THAW}")
        if not all(factor in taking for factor in pair):
            raise ValueError(f"A and B of {name} need one optimizer; change model.optimizers.overrides")
    return taken


def spectral_triples(module: nn.Module) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Finds name -> (U, s, V) of every submodule that has `spectral_triples`."""
    triples = _stated(module, "spectral_triples")
    return {f"{name}.{index}" if index else name: triple for name, index, triple in triples}


def _stated(module: nn.Module, what: str) -> list[tuple[str, int, Any]]:
    """(name, index, statement) of every submodule that has a method of that name."""
    modules = module.named_modules()
    return [(name, *item) for name, child in modules for item in enumerate(getattr(child, what, list)())]
