"""What a CPU needs to decode fast: the order of the weights in memory, and the library that multiplies one row."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lrtrain.nn.decoder import Decoder
from lrtrain.nn.projection import projections


@torch.no_grad()
def order_for_decoding(decoder: Decoder, texts: int) -> None:
    """Lays the weights of a decoder on a CPU out for decoding so many texts at once; no number changes, none is twice
    there.

    A map y = M x with M (out, in) is kept by rows in bfloat16 and by columns in float32, large ones for one text alone:
    M is A, V, Bᵀ or Uᵀ, and as large ones W and the output head. Training keeps all by rows. Weights on other devices,
    of other dtypes, tied to the embedding, and those of projections that state no factors stay as they are.
    """
    for one in projections(decoder).values():
        dense, outer, inner = _weights(one)
        for weight in dense:
            _lay_out(weight, by_columns=weight.dtype == torch.float32 and texts == 1)
        for factor in outer:
            _lay_out(factor, by_columns=factor.dtype == torch.float32)
        for factor in inner:  # (in, r): its columns are the rows of the map
            _lay_out(factor, by_columns=factor.dtype == torch.bfloat16)
    if decoder.head is not None:
        _lay_out(decoder.head.weight, by_columns=decoder.head.weight.dtype == torch.float32 and texts == 1)


def multiplies_rows_itself(decoder: Decoder) -> bool:
    """Whether torch's own loop is the fastest for one row: all weights are bfloat16 on a CPU, laid out for decoding.

    It takes half of oneDNN's time then, and ten times as long where a map is kept by columns.
    """
    head = decoder.head_VD
    if head.device.type != "cpu" or head.dtype != torch.bfloat16:
        return False
    for one in projections(decoder).values():
        dense, outer, inner = _weights(one)
        maps = [*dense, *outer, *(factor.mT for factor in inner)]
        if not maps or not all(weight.dtype == torch.bfloat16 and weight.is_contiguous() for weight in maps):
            return False
    return True


@contextmanager
def without_onednn(wanted: bool) -> Iterator[None]:
    """Multiplies in torch's own loops within, where that is wanted."""
    library: Any = torch.backends.mkldnn
    before = library.enabled
    library.enabled = before and not wanted
    try:
        yield
    finally:
        library.enabled = before


def _weights(projection: Any) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """The dense weights (out, in) of a projection, its factors (out, r), and those (in, r)."""
    dense = [parameter for name, parameter in projection.named_parameters() if name == "weight"]
    outer, inner = [], []
    for a, b in getattr(projection, "factor_pairs", list)():
        outer.append(a)
        inner.append(b)
    for u, _, v in getattr(projection, "spectral_triples", list)():
        outer.append(v)
        inner.append(u)
    return dense, outer, inner


def _lay_out(weight: Tensor, by_columns: bool) -> None:
    if weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16):
        weight.data = weight.mT.contiguous().mT if by_columns else weight.contiguous()
