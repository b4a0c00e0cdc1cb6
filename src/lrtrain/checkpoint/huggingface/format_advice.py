"""Which format decodes faster on this machine: its projections, timed in both."""

import time
from collections.abc import Callable
from copy import deepcopy
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from lrtrain.nn import Decoder
from lrtrain.nn.projection import projections
from lrtrain.nn.rewriting import dense_weight, factors

ROWS = (1, 32)
ENOUGH = 64 * 2**20
"""Bytes of merged weights to time: more than caches hold, so that weights come from memory, as in a large model."""
REPEATS = 5
EQUAL = 0.05
"""Shares of the time that are closer to one than this are no reason."""


def advice(decoder: Decoder, dtype: str) -> str | None:
    """A line on which format to take, by `time_shares`; None where nothing is factorized."""
    if all(factors(one) is None for one in projections(decoder).values()):
        return None
    timed = dtype if dtype == "bfloat16" and _has_bfloat16() else "float32"
    few, many = time_shares(decoder, getattr(torch, timed))
    figures = (
        f"products with the factors take {few:.2f} of the time of the merged ones for {ROWS[0]} text at once, "
        f"{many:.2f} for {ROWS[1]} (timed here, {timed})"
    )
    return f"{recommended(few, many)}: {figures}"


def recommended(few: float, many: float) -> str:
    """In words, by the shares of the merged time for one text at once and for many."""
    faster, slower = ([share < 1 - EQUAL for share in (few, many)], [share > 1 + EQUAL for share in (few, many)])
    if any(faster) and not any(slower):
        return "factorized decodes faster in transformers; vLLM and llama.cpp take merged alone"
    if not any(faster):
        return "merged decodes as fast or faster"
    return f"factorized decodes faster for {'many texts' if faster[1] else 'one text'} at once, merged otherwise"


@torch.inference_mode()
def time_shares(decoder: Decoder, dtype: torch.dtype) -> list[float]:
    """Seconds of a token's products with the factors, of those with the merged weights, for each of `ROWS`.

    So many blocks as `ENOUGH` says are timed, copied to the dtype, the two forms in turn; medians.
    """
    kept: list[Any] = []
    merged: list[torch.Tensor] = []
    for block in decoder.blocks:
        if sum(weight.nbytes for weight in merged) >= ENOUGH:
            break
        for one in projections(block).values():
            merged.append(dense_weight(one).to(dtype))
            kept.append(merged[-1] if factors(one) is None else deepcopy(one).to(dtype))
    shares = []
    for rows in ROWS:
        inputs = {width: torch.randn(rows, width).to(dtype) for width in {weight.shape[1] for weight in merged}}

        def with_factors(inputs: dict[int, torch.Tensor] = inputs) -> None:
            for one, weight in zip(kept, merged, strict=True):
                x = inputs[weight.shape[1]]
                F.linear(x, weight) if one is weight else one(x)

        def with_products(inputs: dict[int, torch.Tensor] = inputs) -> None:
            for weight in merged:
                F.linear(inputs[weight.shape[1]], weight)

        both = [(_seconds(with_factors), _seconds(with_products)) for _ in range(REPEATS + 1)][1:]
        shares.append(median(one for one, _ in both) / median(other for _, other in both))
    return shares


def _seconds(run: Callable[[], None]) -> float:
    start = time.process_time()  # what else the machine does makes no difference
    run()
    return time.process_time() - start


def _has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
