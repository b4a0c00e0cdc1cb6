"""The key-value cache: what attention sees through it is what it sees of whole sequences."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lrtrain.nn import Decoder, KVCache, feed
from small_decoder import VOCAB, decoder


def text(length: int) -> list[int]:
    return torch.randint(0, VOCAB, (length,)).tolist()


def alone(model: Decoder, tokens: Sequence[int]) -> Tensor:
    return model(torch.tensor([[*tokens]]))[0]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@torch.no_grad()
def test_rows_of_any_lengths_fed_in_any_portions_have_the_states_of_whole_sequences(kv_heads: int) -> None:
    model = decoder(kv_heads=kv_heads)
    texts = [text(19), text(11), text(23)]
    cuts = [(0, 5, 6, 13, 19), (0, 5, 6, 10, 11), (0, 1, 2, 16, 23)]
    cache = KVCache(3, 40)
    parts: list[list[Tensor]] = [[], [], []]
    for portion in range(4):
        pieces = [one[cut[portion] : cut[portion + 1]] for one, cut in zip(texts, cuts, strict=True)]
        hidden = feed(model, cache, pieces)
        for part, piece, row in zip(parts, pieces, hidden, strict=True):
            part.append(row[: len(piece)])
    assert cache.lengths == [19, 11, 23]
    for part, one in zip(parts, texts, strict=True):
        torch.testing.assert_close(torch.cat(part), alone(model, one), rtol=0, atol=1e-5)


@pytest.mark.parametrize("portion", [1, 3])
@pytest.mark.parametrize("kv_heads", [4, 2])
@torch.no_grad()
def test_rows_of_one_length_do_as_well(portion: int, kv_heads: int) -> None:
    model, tokens = decoder(kv_heads=kv_heads), torch.randint(0, VOCAB, (2, 12))
    cache = KVCache(2, 12)
    parts = [model(tokens[:, i : i + portion], cache) for i in range(0, 12, portion)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), rtol=0, atol=1e-5)


@torch.no_grad()
def test_continuations_of_one_context_are_computed_from_its_cache_again_and_again() -> None:
    model, context = decoder(), text(9)
    cache = KVCache(1, 9)
    feed(model, cache, [context])
    endings = [text(4), text(2), text(6)]
    several = cache.select([0, 0, 0], 15)
    for _ in range(2):
        hidden = feed(model, several, endings)
        for row, ending in zip(hidden, endings, strict=True):
            expected = alone(model, context + ending)[9:]
            torch.testing.assert_close(row[: len(ending)], expected, rtol=0, atol=1e-5)
        several.lengths = [9, 9, 9]
        endings.reverse()
    assert cache.lengths == [9]


@torch.no_grad()
def test_a_selected_row_goes_on_by_itself() -> None:
    model, texts = decoder(), [text(7), text(3)]
    cache = KVCache(2, 12)
    feed(model, cache, texts)
    second = cache.select([1], 5)
    feed(model, cache, [text(2), text(5)])
    torch.testing.assert_close(feed(model, second, [[8, 9]])[0], alone(model, [*texts[1], 8, 9])[3:], rtol=0, atol=1e-5)


@torch.no_grad()
def test_no_token_moves_what_is_cached() -> None:
    model, cache = decoder(), KVCache(2, 30)
    model(torch.randint(0, VOCAB, (2, 5)), cache)
    before = [tensor.data_ptr() for pair in cache._kept.values() for tensor in pair]
    for _ in range(25):
        model(torch.randint(0, VOCAB, (2, 1)), cache)
    assert [tensor.data_ptr() for pair in cache._kept.values() for tensor in pair] == before
    assert len(before) == 6
    with pytest.raises(ValueError, match="room for 30 tokens a row, and this makes 31"):
        model(torch.zeros(2, 1, dtype=torch.int64), cache)


@torch.no_grad()
def test_what_lies_behind_a_row_is_never_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts = decoder(), [text(2), text(9)]
    cache = KVCache(2, 12)
    feed(model, cache, texts)
    for keys, values in cache._kept.values():
        keys[0, :, 2:], values[0, :, 2:] = 1e4, 1e4
    torch.testing.assert_close(feed(model, cache, [[5], [6]])[0], alone(model, [*texts[0], 5])[2:], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_cache_is_of_no_narrower_dtype_than_float32_on_a_cpu(dtype: torch.dtype) -> None:
    model, tokens = decoder().to(dtype), torch.randint(0, VOCAB, (1, 6))
    cache = KVCache(1, 7)
    assert model(tokens, cache).dtype == model(tokens[:, :1], cache).dtype == dtype
    kept = {tensor.dtype for pair in cache._kept.values() for tensor in pair}
    assert kept == {torch.float64 if dtype == torch.float64 else torch.float32}


class Deaf(Decoder):
    def forward(self, tokens_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        return super().forward(tokens_BT)


class Older(Decoder):
    def forward(self, tokens_BT: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(tokens_BT)


class Twice(Decoder):
    def forward(self, tokens_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        return 2 * super().forward(tokens_BT, cache)


@torch.no_grad()
def test_a_decoder_of_ones_own_passes_its_cache_on_or_is_told_so() -> None:
    from lrtrain.nn import DenseLinear

    sizes = {"vocab_size": VOCAB, "width": 48, "depth": 1, "heads": 4, "ffn_width": 80}
    own, tokens = Twice(**sizes, attention=DenseLinear, mlp=DenseLinear), text(8)
    cache = KVCache(1, 8)
    parts = torch.cat([feed(own, cache, [tokens[:5]])[0], feed(own, cache, [tokens[5:]])[0]])
    torch.testing.assert_close(parts, alone(own, tokens), rtol=0, atol=1e-5)
    deaf = Deaf(**sizes, attention=DenseLinear, mlp=DenseLinear)
    with pytest.raises(ValueError, match=r"Deaf.forward does not extend its cache: pass it on"):
        feed(deaf, KVCache(1, 8), [tokens])
    older = Older(**sizes, attention=DenseLinear, mlp=DenseLinear)
    with pytest.raises(ValueError, match=r"Older.forward takes no cache: give it cache=None"):
        feed(older, KVCache(1, 8), [tokens])
