"""The text of sampled tokens: what they add to their prompt's, whatever the tokenizer does at a text's beginning."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from lrtrain.nn import text_after

WORDS = ["▁the", "▁cat", "▁", "s", "▁sat", "t", "he", "<0xC3>", "<0xA9>", "▁<", "<s>"]


def pieces(decoder: decoders.Decoder) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({piece: number for number, piece in enumerate(WORDS)}, [], byte_fallback=True))
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def metaspace() -> Tokenizer:
    return pieces(decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]))


def stripping() -> Tokenizer:
    """As the tokenizers of Llama 2 decode."""
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return pieces(decoders.Sequence(steps))


def wordpiece() -> Tokenizer:
    vocabulary = {word: number for number, word in enumerate(["the", "cat", "##s", "sat", "do", "n't", "."])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="the"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


@pytest.mark.parametrize("make", [metaspace, stripping])
@pytest.mark.parametrize(
    ("prompt", "continuation", "text"),
    [
        ([0, 1], [4], " sat"),
        ([0, 1], [3, 4], "s sat"),
        ([0, 2], [2, 4], "  sat"),
        ([10], [0, 1], "the cat"),  # an empty prompt: the beginning of a document, where there is no space to keep
        ([0], [7, 8], "é"),
        ([0], [], ""),
    ],
)
def test_a_continuation_keeps_the_space_before_its_first_word(make, prompt, continuation, text) -> None:
    assert text_after(prompt, continuation, make().decode) == text


@pytest.mark.parametrize(
    ("prompt", "continuation", "text"), [([0], [1, 2], " cats"), ([1], [2, 3], "s sat"), ([4], [5, 6], "n't.")]
)
def test_a_decoder_that_tidies_up_loses_no_more_than_it_tidies(prompt, continuation, text) -> None:
    assert text_after(prompt, continuation, wordpiece().decode) == text
