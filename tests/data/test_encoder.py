"""Texts to tokens: no text makes a control token, none is lost in silence, and a long one is like a short one."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Encoding, Tokenizer, decoders, models, normalizers, pre_tokenizers

from lrtrain.data import encoder as encoding
from lrtrain.data.encoder import Encoder
from lrtrain.data.preparation import PrepareSpec, prepare
from lrtrain.data.tokenizer import end_of_text, train_tokenizer
from lrtrain.runtime.errors import UserError
from sources import TEXTS, decoded

LETTERS = "abcdefghijklmnopqrstuvwxyz</|>_0123456789 \n"


def byte_level(texts: list[str] = TEXTS) -> Tokenizer:
    return train_tokenizer(texts, 400)


def added_as_an_ordinary_token() -> Tokenizer:
    state = json.loads(byte_level().to_str())
    state["added_tokens"] = []
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_tokens([AddedToken("<eos>", special=False, normalized=True)])
    del state["model"]["vocab"]["<|endoftext|>"]
    return tokenizer


def words(unknown: str = "<unk>") -> Tokenizer:
    vocabulary = {"a": 0, "</s>": 1, "<unk>": 2, "<pad>": 3, "b": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<unk>", "<pad>", "</s>"])
    return tokenizer


def unigram() -> Tokenizer:
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -3.0), ("▁word", -2.0), *((letter, -4.0) for letter in LETTERS)]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return tokenizer


def characters() -> Tokenizer:
    vocabulary = {character: number for number, character in enumerate(["<eos>", *LETTERS])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


MADE: dict[str, Callable[[], Tokenizer]] = {
    make.__name__: make for make in (byte_level, added_as_an_ordinary_token, words, unigram, characters)
}


def control_tokens(tokenizer: Tokenizer) -> set[int]:
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    return {*special, end_of_text(tokenizer)} - {tokenizer.token_to_id("<unk>")}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_no_text_makes_a_control_token(make: Callable[[], Tokenizer], data: st.DataObject) -> None:
    tokenizer = make()
    spelled = ["<|endoftext|>", "</s>", "<eos>", "<pad>", "<unk>", "a", " ", "word"]
    wide = ["＜/s＞"] if tokenizer.get_vocab().get("<unk>") else []
    text = "".join(data.draw(st.lists(st.sampled_from(spelled + wide), min_size=1, max_size=6)))
    (ids,) = Encoder(tokenizer, np.dtype(np.int32)).documents([text])
    assert ids[-1] == end_of_text(tokenizer)
    assert not control_tokens(tokenizer) & {*ids[:-1].tolist()}, (text, ids)


def test_a_prepared_data_set_has_one_end_of_text_a_document(tmp_path: Path) -> None:
    added_as_an_ordinary_token().save(str(tmp_path / "own.json"))
    texts = [f"{i} says <eos> aloud" for i in range(60)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    spec = PrepareSpec([f"{tmp_path}/x.jsonl"], tokenizer=f"{tmp_path}/own.json", val_fraction=0.3)
    manifest = prepare(spec, str(tmp_path / "out"))
    found = [document for split in ("train", "val") for document in decoded(tmp_path / "out", split, "<eos>")]
    assert len(found) == 60 == manifest.train.documents + manifest.val.documents


def test_a_spelled_byte_stays_text_where_unknown_characters_are_bytes() -> None:
    pieces = [
        ("<unk>", 0.0),
        ("</s>", 0.0),
        *((f"<0x{i:02X}>", -5.0) for i in range(256)),
        *((c, -3.0) for c in LETTERS),
    ]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("A", -3.0)], 0, True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    text = "a<0x0A>b é </s> <0x00>"
    (ids,) = Encoder(tokenizer, np.dtype(np.int32)).documents([text])
    assert tokenizer.decode(ids[:-1].tolist()) == text != tokenizer.decode(tokenizer.encode(text).ids)


def test_a_special_end_of_text_is_preferred_to_a_tag_of_that_name() -> None:
    tokenizer = Tokenizer(models.WordLevel({"</s>": 0, "<unk>": 1, "<eos>": 2}, unk_token="<unk>"))
    assert end_of_text(tokenizer) == 0
    tokenizer.add_special_tokens(["<eos>"])
    assert end_of_text(tokenizer) == 2


def test_an_end_of_text_that_also_stands_for_the_unknown_is_refused() -> None:
    encoder = Encoder(words(unknown="</s>"), np.dtype(np.uint16))
    assert encoder.documents(["a b"])[0].tolist() == [0, 4, 1]
    with pytest.raises(UserError, match=r"makes its control token </s> of 'c' in a text"):
        encoder.documents(["a b c"])


def test_a_character_that_would_vanish_is_refused_and_others_are_not() -> None:
    encoder = Encoder(characters(), np.dtype(np.uint16))
    assert len(encoder.documents(["all of it is known\n"])[0]) == 20
    with pytest.raises(UserError, match=r"no token for 'é'.*would vanish"):
        encoder.documents(["known", "a café"])
    state = json.loads(byte_level().to_str())
    del state["model"]["vocab"]["©"]  # the second byte of é
    state["model"]["merges"] = []
    encoder = Encoder(Tokenizer.from_str(json.dumps(state)), np.dtype(np.uint16))
    assert len(encoder.documents(["ä"])[0]) == 3
    with pytest.raises(UserError, match=r"no token for 'é'.*would vanish"):
        encoder.documents(["é"])


@pytest.mark.parametrize(
    "model", [models.WordLevel({"a": 0, "<eos>": 1}), models.Unigram([("a", -1.0), ("<eos>", 0.0)], None, False)]
)
def test_a_tokenizer_that_fails_on_a_text_is_one_line(model: models.Model) -> None:
    encoder = Encoder(Tokenizer(model), np.dtype(np.uint16))
    assert encoder.documents(["a"])[0].tolist() == [0, 1]
    with pytest.raises(UserError, match=r"fails on a text \(.*\): give it a token"):
        encoder.documents(["x"])


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_a_long_text_has_the_tokens_of_the_whole(
    make: Callable[[], Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    random = Random(0)
    text = "".join(random.choices(["word ", "a ", " b", "  ", "\n", "\n\n", "0123", "letters"], k=4000))
    tokenizer = make()
    whole = [*tokenizer.encode(text, add_special_tokens=False).ids, end_of_text(tokenizer)]
    for piece in (600, 1000):
        monkeypatch.setattr(encoding, "PIECE", piece)
        monkeypatch.setattr(encoding, "SEARCHED", 300)
        encoder = Encoder(tokenizer, np.dtype(np.int32))
        assert len([*encoder._pieces(text)]) > len(text) / piece / 2
        assert encoder.documents(["a", text, "b"])[1].tolist() == whole


def test_the_library_is_given_so_much_at_once_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "PIECE", 1000)
    given: list[int] = []
    asked = Encoder._asked

    def record(self: Encoder, encode: Callable[..., list[Encoding]], texts: Sequence[str]) -> list[Encoding]:
        given.append(sum(map(len, texts)))
        return asked(self, encode, texts)

    monkeypatch.setattr(Encoder, "_asked", record)
    Encoder(BYTE_LEVEL, np.dtype(np.int32)).documents([*TEXTS[:40], " ".join(TEXTS), *TEXTS[40:]])
    assert max(given) <= 2500
    assert sum(given) > 2 * sum(map(len, TEXTS))


def test_a_tokenizer_that_no_cut_leaves_alone_encodes_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = characters()
    tokenizer.normalizer = normalizers.Prepend(" ")
    monkeypatch.setattr(encoding, "PIECE", 600)
    monkeypatch.setattr(encoding, "SEARCHED", 300)
    (ids,) = Encoder(tokenizer, np.dtype(np.int32)).documents(["a word " * 600])
    assert len(ids) == 4200 + 2


@settings(max_examples=40, deadline=None)
@given(text=st.text(alphabet="ab é日😀\n", min_size=1, max_size=80), length=st.integers(2, 60))
def test_a_beginning_ends_at_a_character_and_counts_its_bytes(text: str, length: int) -> None:
    encoder = Encoder(BYTE_LEVEL, np.dtype(np.int32))
    tokens, n_bytes = encoder.beginning(text, length)
    (whole,) = encoder.documents([text])
    kept = len(tokens) - 1
    assert tokens[-1] == whole[-1]
    assert tokens[:-1].tolist() == whole[:kept].tolist()
    assert min(length, len(whole)) - 4 < len(tokens) <= length
    assert len(BYTE_LEVEL.decode(tokens[:-1].tolist()).encode()) == n_bytes


BYTE_LEVEL = byte_level()


def test_the_token_limit_is_reached_inside_a_long_document(tmp_path: Path, tokenizer: str) -> None:
    texts = [*TEXTS[:40], " ".join(TEXTS), *TEXTS[40:]]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    spec = PrepareSpec([f"{tmp_path}/x.jsonl"], tokenizer=tokenizer, val_fraction=0.2, max_tokens=20_000)
    manifest = prepare(spec, str(tmp_path / "out"))
    assert manifest.train.tokens == 20_000
    found = decoded(tmp_path / "out", "train")
    assert found[-1] == texts[40][: len(found[-1])]
    assert manifest.train.bytes == sum(len(text.encode()) for text in found)


def test_a_tokenizer_that_gives_back_another_text_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": f"Cafés {i}"}) + "\n" for i in range(60)))
    for normalizer, said in ((None, False), (normalizers.Lowercase(), True)):
        tokenizer = byte_level()
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        tokenizer.save(f"{tmp_path}/own.json")
        spec = PrepareSpec([f"{tmp_path}/x.jsonl"], tokenizer=f"{tmp_path}/own.json", val_fraction=0.3)
        prepare(spec, str(tmp_path / f"out{said}"))
        words = "gives back another text for 1 of 1 sampled documents ('cafés 0' for 'Cafés 0'): bits per byte"
        assert (words in capsys.readouterr().out) == said
