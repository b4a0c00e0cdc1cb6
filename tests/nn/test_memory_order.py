"""Weights in another order in memory: the same numbers, and the same text to rounding."""

from functools import partial
from typing import Any

import pytest
import torch

import small_decoder
from lrtrain.nn import DenseLinear, LowRankLinear, Sampling, SpectralLinear, generate, order_for_decoding
from lrtrain.nn.projection import LinearCallable, projections

KINDS: dict[str, tuple[LinearCallable, str, str]] = {  # what is (out, ·), and what is (in, r)
    "dense": (DenseLinear, "weight", ""),
    "low-rank": (partial(LowRankLinear, rank=3), "A", "B"),
    "spectral": (partial(SpectralLinear, rank=3), "V", "U"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("texts", [1, 8])
def test_nothing_but_the_order_changes(kind: str, dtype: torch.dtype, texts: int) -> None:
    linear, outer, inner = KINDS[kind]
    decoder = small_decoder.decoder(linear).to(dtype)
    before = {name: weight.clone() for name, weight in decoder.state_dict().items()}
    order_for_decoding(decoder, 3)
    order_for_decoding(decoder, texts)
    assert all(torch.equal(weight, before[name]) for name, weight in decoder.state_dict().items())
    for one in projections(decoder).values():
        assert by_columns(getattr(one, outer)) == (dtype == torch.float32 and (texts == 1 or kind != "dense"))
        if inner:
            assert by_columns(getattr(one, inner)) == (dtype == torch.bfloat16)
    assert by_columns(decoder.head.weight) == (dtype == torch.float32 and texts == 1)


def test_the_text_is_the_same_and_a_tied_head_stays_by_rows() -> None:
    decoder = small_decoder.decoder(partial(LowRankLinear, rank=3), tie_embeddings=True)
    ask: Any = partial(generate, decoder, [[1, 2, 3], [4]], 12, Sampling(temperature=0))
    plain = ask()
    order_for_decoding(decoder, 2)
    assert [one.tokens for one in ask()] == [one.tokens for one in plain]
    assert decoder.embedding.weight.is_contiguous()


def by_columns(weight: torch.Tensor) -> bool:
    return not weight.is_contiguous() and weight.mT.is_contiguous()
