"""Weights in another order in memory, and one row without oneDNN: the same numbers, and the same text to rounding."""

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


@pytest.mark.parametrize("kind", KINDS)
def test_one_row_is_multiplied_without_onednn_where_weights_are_laid_out_for_it(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = small_decoder.decoder(KINDS[kind][0]).bfloat16()
    library: Any = torch.backends.mkldnn
    seen: list[tuple[int, bool]] = []
    forward = decoder.forward

    def spied(tokens_BT: torch.Tensor, cache: Any = None) -> torch.Tensor:
        seen.append((len(tokens_BT), library.enabled))
        return forward(tokens_BT, cache)

    monkeypatch.setattr(decoder, "forward", spied)
    for prompts in ([[1, 2, 3]], [[1, 2], [3]]):
        order_for_decoding(decoder, len(prompts))
        generate(decoder, prompts, 3, Sampling(temperature=0))
    assert seen == [(1, True), (1, False), (1, False), (2, True), (2, True), (2, True)]  # prefill, then single tokens
    assert library.enabled
    seen.clear()
    for parameter in decoder.parameters():  # as in training: some maps by columns; or all float32
        parameter.data = parameter.data.contiguous()
    generate(decoder, [[1]], 2, Sampling(temperature=0))
    generate(decoder.float(), [[1]], 2, Sampling(temperature=0))
    assert [enabled for _, enabled in seen] == [True, kind != "dense", True, True]


@pytest.mark.parametrize("kv_heads", [None, 2])
def test_bfloat16_with_a_cache_is_bfloat16_without(kv_heads: int | None) -> None:
    decoder = small_decoder.decoder(partial(LowRankLinear, rank=3), kv_heads=kv_heads).bfloat16()
    order_for_decoding(decoder, 1)
    prompt = [1, 2, 3, 4, 5]
    (found,) = generate(decoder, [prompt], 8, Sampling(temperature=0))
    logits_TV = decoder.logits(decoder(torch.tensor([prompt + found.tokens]))[0]).float()
    expected = logits_TV.log_softmax(-1)[range(4, 12), found.tokens]
    assert torch.allclose(torch.tensor(found.log_probabilities), expected.detach(), atol=0.05)


def by_columns(weight: torch.Tensor) -> bool:
    return not weight.is_contiguous() and weight.mT.is_contiguous()
