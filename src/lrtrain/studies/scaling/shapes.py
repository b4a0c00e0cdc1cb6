"""Decoder shapes by a size index, and what a shape costs."""

import math
from dataclasses import dataclass

from lrtrain.nn import Decoder

TRAINING = 3
"""FLOPs of forward and backward pass over those of the forward pass (arXiv 2001.08361, section 2.1)."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder that its size index sets."""

    size_index: int
    width: int
    depth: int
    heads: int
    ffn_width: int

    @property
    def settings(self) -> dict[str, int]:
        """The shape as keys of the configuration."""
        return {f"model.decoder.{key}": getattr(self, key) for key in ("width", "depth", "heads", "ffn_width")}


@dataclass(frozen=True)
class Size:
    """What a shape costs.

    `parameters` are all of them, `non_embedding` those without embedding and output head; `flops` are those of training
    on one token, forward and backward.
    """

    parameters: int
    non_embedding: int
    flops: int


def shape_of(size_index: int, head_width: int = 64) -> Shape:
    """The decoder of size index n with heads of an even width h.

    depth n, heads n, width d = h n, feed-forward width ⌈8 d / 3⌉ rounded up to a multiple of 4 h. With h = 64 that
    multiple is the usual 256, and indices 12, 20 and 24 are the recipes S, M and L; smaller heads make smaller decoders
    of the same proportions.
    """
    n, width, multiple = size_index, head_width * size_index, 4 * head_width
    return Shape(n, width, n, n, math.ceil(8 * width / (3 * multiple)) * multiple)


def size_of(decoder: Decoder, block_size: int) -> Size:
    """Counts a decoder's parameters and the FLOPs of training it on one token of a sequence of `block_size`."""
    total = sum(p.numel() for p in decoder.parameters())
    tables = {id(p): p.numel() for p in (decoder.embedding.weight, decoder.head_VD)}
    return Size(total, total - sum(tables.values()), TRAINING * decoder.flops_per_token(block_size))
