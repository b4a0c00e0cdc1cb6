"""What a model's projections state of themselves."""

from torch import Tensor, nn


def structure(module: nn.Module) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """What there is to constrain in a model: name -> (A, B), and name -> orthonormal parameter.

    Asks every submodule that has `factor_pairs` and `orthonormal`, whatever its class.
    """
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    orthonormal: dict[str, Tensor] = {}
    for name, child in module.named_modules():
        if not hasattr(child, "factor_pairs"):
            continue
        for index, pair in enumerate(child.factor_pairs()):
            pairs[f"{name}.{index}" if index else name] = pair
        for index, parameter in enumerate(child.orthonormal()):
            orthonormal[f"{name}.{index}"] = parameter
    return pairs, orthonormal


def spectral_triples(module: nn.Module) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """name -> (U, s, V) of every submodule that has `spectral_triples`, whatever its class."""
    triples: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for name, child in module.named_modules():
        if hasattr(child, "spectral_triples"):
            for index, triple in enumerate(child.spectral_triples()):
                triples[f"{name}.{index}" if index else name] = triple
    return triples
