"""The projections in a model that is not ours: with a bias, in the place of a linear layer, noted for transformers."""

from typing import Any

import torch
from torch import Tensor, nn

from lrtrain.nn.lowrank import LowRankLinear
from lrtrain.nn.projection import Projection
from lrtrain.nn.spectral import SpectralLinear

KINDS: dict[str, type[LowRankLinear | SpectralLinear]] = {"low_rank": LowRankLinear, "spectral": SpectralLinear}
METHOD = "lrtrain"
"""`quant_method` in the `quantization_config` of a transformers model whose layers are factorized."""


class Biased(nn.Module):
    """y = W x + b with a projection for W, which has no bias itself."""

    def __init__(self, projection: Projection, bias: nn.Parameter) -> None:
        super().__init__()
        self.projection = projection
        self.bias = bias
        self.in_features, self.out_features = projection.in_features, projection.out_features

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.projection(x)
        return y + self.bias.to(y.dtype)


def factorized_ranks(model: nn.Module) -> dict[str, dict[str, int]]:
    """Kind -> name -> rank of the low-rank and spectral projections in a model; a bias is a part of its layer."""
    found: dict[str, dict[str, int]] = {kind: {} for kind in KINDS}
    biased = {id(module.projection): name for name, module in model.named_modules() if isinstance(module, Biased)}
    for name, module in model.named_modules():
        for kind, made in KINDS.items():
            if type(module) is made:
                found[kind][biased.get(id(module), name)] = module.rank
    return found


def replace_empty(model: nn.Module, ranks: dict[str, dict[str, int]]) -> None:
    """Replaces linear layers by projections of these ranks without a weight, on the meta device, to be loaded."""
    for kind, of_kind in ranks.items():
        for name, rank in of_kind.items():
            linear: Any = model.get_submodule(name)
            with torch.device("meta"):
                layer: nn.Module = KINDS[kind](linear.in_features, linear.out_features, rank=rank)
            replace_module(model, name, with_bias(layer.to(linear.weight.dtype), linear))
    note_ranks(model)


def note_ranks(model: Any) -> None:
    """Writes the ranks into the configuration of a transformers model, and marks its factorized layers."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "save_pretrained"):
        return
    ranks = factorized_ranks(model)
    if not any(ranks.values()):
        if is_ours(getattr(config, "quantization_config", None)):
            del config.quantization_config
        return
    if quantizer := getattr(model, "hf_quantizer", None):  # of a file whose weights were unpacked when it was read
        quantizer.remove_quantization_config(model)
    config.quantization_config = {"quant_method": METHOD, **ranks}
    for name in (name for of_kind in ranks.values() for name in of_kind):
        layer = model.get_submodule(name)
        factor = next(layer.parameters())
        layer.register_buffer("weight", torch.empty(0, dtype=factor.dtype, device=factor.device))


def is_ours(noted: object) -> bool:
    """Whether a `quantization_config` is what `note_ranks` writes."""
    return isinstance(noted, dict) and noted.get("quant_method") == METHOD


def with_bias(layer: Any, old: Any) -> nn.Module:
    """A projection with the bias of the layer that it replaces, if that has one."""
    bias = getattr(old, "bias", None)
    return layer if bias is None else Biased(layer, bias)


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Puts a module in the place of another."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, new)
