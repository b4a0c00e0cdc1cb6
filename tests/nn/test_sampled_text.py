"""The text of sampled tokens: what they add to their prompt's, whatever the tokenizer does at a text's beginning."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from lrtrain.data.tokenizer import train_tokenizer
from lrtrain.nn import TextStream, text_after

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


# As it comes

TEXT = "naïve façade, 東京 and Ελλάδα: 👩‍🔬 œuvre"


@pytest.fixture(scope="module")
def bytes_of_text() -> Tokenizer:
    return train_tokenizer([TEXT], 300)


@given(st.data())
def test_what_comes_is_in_the_end_what_all_tokens_say_at_once(bytes_of_text: Tokenizer, data: st.DataObject) -> None:
    tokenizer = data.draw(st.sampled_from([bytes_of_text, metaspace(), stripping()]))
    size = tokenizer.get_vocab_size()
    prompt, tokens = (data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)) for _ in range(2))
    if text_after([], prompt, tokenizer.decode).endswith("\ufffd"):
        prompt = tokenizer.encode("a").ids
    stream = TextStream(tokenizer.decode, prompt)
    pieces = [*map(stream.add, tokens), stream.end()]
    assert "".join(pieces) == stream.text
    expected = text_after(prompt, tokens, tokenizer.decode)
    # A byte that follows a whole character of single bytes makes the library drop that character as well.
    assert stream.text == expected or (tokenizer is not bytes_of_text and "\ufffd" in expected)


def test_a_character_comes_when_it_is_whole_and_a_word_with_its_space(bytes_of_text: Tokenizer) -> None:
    characters = train_tokenizer(["a"], 257)  # a token a byte
    stream = TextStream(characters.decode, characters.encode("a").ids)
    pieces = [stream.add(token) for token in characters.encode(TEXT).ids]
    assert [piece for piece in pieces if piece] == [*TEXT]
    assert len(pieces) == len(TEXT.encode())
    words = metaspace()
    stream = TextStream(words.decode, [0])
    assert [stream.add(token) for token in (1, 3, 7, 8, 4)] == [" cat", "s", "", "é", " sat"]


def test_bytes_that_never_become_a_character_come_at_the_end() -> None:
    characters = train_tokenizer(["a"], 257)
    first, *_ = characters.encode("é").ids
    stream = TextStream(characters.decode, [])
    assert [stream.add(token) for token in (first, first)] == ["", ""]
    assert stream.end() == "\ufffd\ufffd"
    assert stream.text == "\ufffd\ufffd"


@pytest.mark.parametrize(
    ("stops", "shown", "text"),
    [
        (["cd"], ["a", "b", "", ""], "ab"),
        (["cx"], ["a", "b", "", "cd", "e", "f"], "abcdef"),
        (["def", "bc"], ["a", "", ""], "a"),
        (["bcde", "c"], ["a", "", ""], "ab"),
        (["f"], ["a", "b", "c", "d", "e", ""], "abcde"),
    ],
)
def test_a_stop_string_ends_the_text_and_no_part_of_one_is_shown(stops: list[str], shown: list[str], text: str) -> None:
    letters = train_tokenizer(["a"], 257)
    stream = TextStream(letters.decode, [], stops)
    pieces = []
    for token in letters.encode("abcdef").ids:
        pieces.append(stream.add(token))
        if stream.stopped:
            break
    ending = stream.end()
    assert "".join([*pieces, ending]) == stream.text == text
    assert stream.stopped == (len(text) < 6)
    assert not stream.stopped or ending == ""
    assert pieces[: len(shown) - 1] == shown[:-1]


def test_what_looked_like_a_stop_string_comes_at_the_end() -> None:
    letters = train_tokenizer(["a"], 257)
    stream = TextStream(letters.decode, [], ["bcd"])
    assert [stream.add(token) for token in letters.encode("abc").ids] == ["a", "", ""]
    assert (stream.end(), stream.text, stream.stopped) == ("bc", "abc", False)
    with pytest.raises(ValueError, match="a stop string is empty"):
        TextStream(letters.decode, [], ["a", ""])
