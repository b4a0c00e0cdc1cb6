"""What a model's projections state of themselves."""

from typing import Any

from torch import Tensor, nn


def structure(module: nn.Module) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """What there is to constrain in a model: name -> (A, B), and name -> orthonormal parameter.

    Asks every submodule that has `factor_pairs` or `orthonormal`, whatever its class.
    """
    pairs, orthonormal = (_stated(module, what) for what in ("factor_pairs", "orthonormal"))
    named_pairs = {f"{name}.{index}" if index else name: pair for name, index, pair in pairs}
    return named_pairs, {f"{name}.{index}": parameter for name, index, parameter in orthonormal}


def spectral_triples(module: nn.Module) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """name -> (U, s, V) of every submodule that has `spectral_triples`, whatever its class."""
    triples = _stated(module, "spectral_triples")
    return {f"{name}.{index}" if index else name: triple for name, index, triple in triples}


def _stated(module: nn.Module, what: str) -> list[tuple[str, int, Any]]:
    """(name, index, statement) of every submodule that has a method of that name."""
    modules = module.named_modules()
    return [(name, *item) for name, child in modules for item in enumerate(getattr(child, what, list)())]
