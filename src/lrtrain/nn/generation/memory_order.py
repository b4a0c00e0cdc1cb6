"""The order in memory in which a CPU multiplies a few rows by a weight fastest."""

from typing import Any

import torch
from torch import Tensor, nn

from lrtrain.nn.decoder import Decoder
from lrtrain.nn.projection import projections


@torch.no_grad()
def order_for_decoding(decoder: Decoder) -> None:
    """Lays the weights of a decoder on a CPU out for decoding; none of them is another number, and none is twice there.

    A map y = M x with M (out, in) is kept by columns in float32 and by rows in bfloat16: M is W, A or V, the output
    head, and Bᵀ or Uᵀ. Training keeps all by rows. Weights on other devices, of other dtypes, tied to the embedding,
    and those of projections that state no factors stay as they are.
    """
    for one in projections(decoder).values():
        outer, inner = _factors(one)
        for factor in outer:
            _lay_out(factor, by_columns=factor.dtype == torch.float32)
        for factor in inner:  # (in, r): its columns are the rows of the map
            _lay_out(factor, by_columns=factor.dtype == torch.bfloat16)
    if decoder.head is not None:
        _lay_out(decoder.head.weight, by_columns=decoder.head.weight.dtype == torch.float32)


def _factors(projection: Any) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices (out, r) or (out, in) of a projection, and those (in, r)."""
    outer = [parameter for name, parameter in projection.named_parameters() if name == "weight"]
    inner = []
    for a, b in getattr(projection, "factor_pairs", list)():
        outer.append(a)
        inner.append(b)
    for u, _, v in getattr(projection, "spectral_triples", list)():
        outer.append(v)
        inner.append(u)
    return outer, inner


def _lay_out(weight: Tensor, by_columns: bool) -> None:
    if weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16):
        weight.data = weight.mT.contiguous().mT if by_columns else weight.contiguous()
