"""Words from memory make the tokens that the library makes, of any text; what is not certain is left to the library."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from lrtrain.data import words
from lrtrain.data.encoder import Encoder
from lrtrain.data.tokenizer import load_tokenizer, train_tokenizer
from lrtrain.data.words import Words
from sources import TEXTS

KIND = np.dtype(np.uint16)
PROSE = [
    "It's they're we'll I'd 've\n\n\t  done  \u00a0 x",
    "naïve café — “quoted” ½ ٣ 漢字 кириллица ǅ _under_score",
    *TEXTS,
]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer(PROSE, 600)


def encoders(tokenizer: Tokenizer) -> tuple[Encoder, Encoder]:
    """By the library, and from memory."""
    plain, remembering = Encoder(tokenizer, KIND), Encoder(tokenizer, KIND)
    remembering.remember_words()
    assert remembering._words is not None
    return plain, remembering


def test_every_character_of_a_certain_class_is_cut_as_the_library_cuts_it(trained: Tokenizer) -> None:
    certain = [chr(code) for code in range(2**16) if words._class(chr(code))]
    assert len(certain) > 50_000
    plain, remembering = encoders(trained)
    probes = ["".join(f"a{c}1{c}{c} {c}b  {c}" for c in some) for some in batched(certain, 100)]
    for probe, wanted in zip(probes, plain.documents(probes), strict=True):
        found = remembering._words.encode(probe) if remembering._words is not None else None
        assert found is not None
        assert np.array_equal(found, wanted[:-1]), repr(probe)


def batched(items: list[str], size: int) -> list[list[str]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


ODD = st.text(
    st.sampled_from("a 'strevldm\n\t\r\u00a0\u2009\u200b\x1c\x85é½٣漢_-.😀\U0001e900ₙ\u0378𝟘<|endoftxl>"), max_size=60
)


@given(texts=st.lists(st.one_of(ODD, st.text(max_size=40)), min_size=1, max_size=6))
def test_any_documents_have_the_same_tokens(trained: Tokenizer, texts: list[str]) -> None:
    plain, remembering = encoders(trained)
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    for wanted, found in zip(plain.documents(texts), remembering.documents(texts), strict=True):
        assert np.array_equal(wanted, found)


def test_what_spells_a_control_token_or_is_uncertain_is_left_to_the_library(trained: Tokenizer) -> None:
    found = Words(trained, KIND)
    for text in ("says <|endoftext|> aloud", "an emoji 😀", "\u0378", "x" * (words.LONGEST_TEXT + 1)):
        assert found.encode(text) is None
    assert found.encode("") is not None
    plain, remembering = encoders(trained)
    spelled = ["plain", "says <|endoftext|> aloud"]
    for wanted, got in zip(plain.documents(spelled), remembering.documents(spelled), strict=True):
        assert np.array_equal(wanted, got)


def another(kind: str) -> Tokenizer:
    tokenizer = train_tokenizer(TEXTS[:20], 300)
    if kind == "normalizer":
        tokenizer.normalizer = normalizers.NFC()
    elif kind == "space before":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif kind == "no pattern":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    elif kind == "another pattern":
        split = pre_tokenizers.Split(Regex(r"\d"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    elif kind == "nothing cut":
        tokenizer.pre_tokenizer = None  # type: ignore[assignment]
    else:
        tokenizer.model = models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="a")
    return tokenizer


@pytest.mark.parametrize(
    "kind", ["normalizer", "space before", "no pattern", "another pattern", "nothing cut", "another model"]
)
def test_another_kind_of_tokenizer_has_no_words(kind: str) -> None:
    assert Words.of(another(kind), KIND) is None


def test_memory_is_bounded_and_a_wrong_word_is_not_passed_over(
    trained: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "MOST_WORDS", 3)
    _, remembering = encoders(trained)
    remembering.documents(TEXTS[:50])
    assert remembering._words is not None
    assert len(remembering._words) == 3
    for word in remembering._words:
        remembering._words[word] = np.array([7], KIND).tobytes()
    with pytest.raises(AssertionError, match="words from memory make other tokens"):
        remembering.documents(TEXTS[:2])


def test_a_tokenizer_from_a_file_has_words(tokenizer: str, tmp_path: Path) -> None:
    assert Words.of(load_tokenizer(tokenizer), KIND) is not None
