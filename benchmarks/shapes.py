"""The factor shapes of the shipped recipes."""

from typing import Any, NamedTuple

from lrtrain.nn.factorized import resolve_rank

SIZES = ("S", "M", "L")
RANK_RATIO = 0.25


class Size(NamedTuple):
    """A decoder's width, depth and feed-forward width."""

    width: int
    depth: int
    ffn_width: int


DECODERS = {"S": Size(768, 12, 2048), "M": Size(1280, 20, 3584), "L": Size(1536, 24, 4096)}


def factor_shapes(size: str) -> list[tuple[int, int]]:
    """(features, rank) of every factor A and B of configs/spectron_<size>.yaml, block by block."""
    width, depth, ffn = DECODERS[size]
    projections = [(width, width)] * 4 + [(width, ffn)] * 2 + [(ffn, width)]
    block = []
    for in_features, out_features in projections:
        rank = resolve_rank(in_features, out_features, None, RANK_RATIO)
        block += [(out_features, rank), (in_features, rank)]
    return block * depth


def pairs_of(parameters: list[Any]) -> dict[str, tuple[Any, Any]]:
    """Factors in the order of `factor_shapes` as name -> (A, B)."""
    return {str(index // 2): (parameters[index], parameters[index + 1]) for index in range(0, len(parameters), 2)}
