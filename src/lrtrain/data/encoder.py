"""A text to token ids: all of it, in bounded memory, and no control token that it only spells."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from lrtrain.data.tokenizer import PIECE, end_of_text, vocabulary_size
from lrtrain.data.words import Words
from lrtrain.runtime.errors import UserError

WINDOW = 256  # characters on either side in which a cut must make no difference
SEARCHED, TRIED = 4096, 16  # characters before a piece's end in which a cut is looked for, and how many are tried
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# Characters whose UTF-8 has every byte that UTF-8 has.
EVERY_BYTE = [chr(c) for c in (*range(1, 0x800), *range(0x800, 0xD800, 0x400), *range(0x10000, 0x110000, 0x10000))]


class Encoder:
    """Documents to arrays of token ids, the end-of-text token after each.

    Where a text spells a control token (the end of text, or one that the tokenizer calls special) or a byte (`<0x0A>`)
    and the tokenizer would make that of it, the spelling is cut in two: only we separate documents. A tokenizer that
    begins whatever it is given with a space then puts one between. A long text is cut into pieces where that leaves its
    tokens the same; where no cut does, as with such a tokenizer, it is encoded as a whole.

    Raises:
        UserError: on a text of which a control token cannot be kept out, or of which a character would be lost.
    """

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype[Any]) -> None:
        tokenizer.encode_special_tokens = True  # a special token that a text spells is left to the model
        self.tokenizer = tokenizer
        self.dtype = dtype
        self.separator = end_of_text(tokenizer)
        unknown, vanishes = _unknown(tokenizer)
        self._control = np.zeros(vocabulary_size(tokenizer), bool)
        for index, token in tokenizer.get_added_tokens_decoder().items():
            self._control[index] = token.special and token.content != unknown
        self._control[self.separator] = True
        self._byte = np.zeros_like(self._control)  # `<0x0A>`, which a model falls back to for what it does not know
        self._byte[[i for i in map(tokenizer.token_to_id, BYTES) if i is not None]] = True
        self._words: Words | None = None
        self._known: set[str] = set()
        self._loses = vanishes and any(map(self._lost, EVERY_BYTE))

    def remember_words(self) -> None:
        """From now on take words from memory where the tokenizer allows it (`Words`), which pays from a megabyte on."""
        self._words = None if self._loses else Words.of(self.tokenizer, self.dtype)

    def documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each text and their separator."""
        remembered = [self._remembered(text) for text in texts]
        others = [text for text, ids in zip(texts, remembered, strict=True) if ids is None]
        if texts and remembered[0] is not None:
            others.append(texts[0])  # the first is done in both ways
        by_library = iter(self._by_library(others))
        found = [next(by_library) if ids is None else self._joined([ids]) for ids in remembered]
        for check in by_library:
            assert np.array_equal(check, found[0]), f"words from memory make other tokens of {texts[0][:80]!r} …"
        return found

    def _remembered(self, text: str) -> np.ndarray | None:
        ids = self._words.encode(text) if self._words is not None else None
        return None if ids is None or self._control[ids].any() or self._byte[ids].any() else ids

    def _by_library(self, texts: Sequence[str]) -> list[np.ndarray]:
        arrays: list[list[np.ndarray]] = [[] for _ in texts]
        for group in _groups((number, piece) for number, text in enumerate(texts) for piece in self._pieces(text)):
            for (number, piece), encoding in zip(group, self._encoded([piece for _, piece in group]), strict=True):
                arrays[number] += [ids for _, ids in self._checked(piece, encoding)]
        return [self._joined(document) for document in arrays]

    def beginning(self, text: str, length: int) -> tuple[np.ndarray, int]:
        """A document's first tokens with a separator, and the bytes of UTF-8 that they stand for.

        They are `length`, or some fewer where that falls inside a character.
        """
        arrays: list[np.ndarray] = []
        n_bytes, room = 0, length - 1
        for piece in self._pieces(text):
            for part, ids in self._checked(piece, self._encoded([piece])[0]):
                if len(ids) > room:
                    offsets = self._with_offsets(part).offsets
                    while room > 0 and offsets[room][0] < offsets[room - 1][1]:
                        room -= 1
                    end = offsets[room - 1][1] if room > 0 else 0
                    return self._joined([*arrays, ids[:room]]), n_bytes + len(part[:end].encode())
                arrays.append(ids)
                n_bytes += len(part.encode())
                room -= len(ids)
        return self._joined(arrays), n_bytes

    def changed(self, text: str) -> str | None:
        """What the tokenizer gives back for `text` where it is another text, the spaces at its ends apart."""
        text = text.strip()
        back: str = self.tokenizer.decode(self._encoded([text])[0].ids, skip_special_tokens=False).strip()
        if back == text:
            return None
        same = next((i for i, (one, other) in enumerate(zip(text, back, strict=False)) if one != other), len(back))
        shown = slice(max(0, same - 10), same + 20)
        return f"{back[shown]!r} for {text[shown]!r}"

    def _encoded(self, texts: Sequence[str]) -> list[Encoding]:
        return self._asked(self.tokenizer.encode_batch_fast, texts)

    def _with_offsets(self, text: str) -> Encoding:
        return self._asked(self.tokenizer.encode_batch, [text])[0]

    def _asked(self, encode: Callable[..., list[Encoding]], texts: Sequence[str]) -> list[Encoding]:
        try:
            return encode(texts, add_special_tokens=False)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises bare Exception or panics
            raise UserError(
                f"the tokenizer fails on a text ({error}): give it a token for what it does not know"
            ) from error

    def _joined(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([*arrays, np.array([self.separator], self.dtype)])

    def _checked(self, text: str, encoding: Encoding) -> Iterator[tuple[str, np.ndarray]]:
        """The text and its ids, in parts where it spells a control token."""
        if self._loses and (lost := next(filter(self._lost, {*text} - self._known), None)):
            raise UserError(
                f"the tokenizer has no token for {lost!r} and none for what it does not know, so text would vanish: "
                "give it an unknown token, or train one on bytes (train_vocab_size)"
            )
        ids = np.array(encoding.ids, self.dtype)
        cuts: list[int] = []
        if self._control[ids].any() or (BYTES[0][:3] in text and self._byte[ids].any()):
            spelled = self._with_offsets(text)  # the fast encoding knows no offsets
            for index, (start, end) in zip(spelled.ids, spelled.offsets, strict=True):
                if self._control[index] and end - start < 2:
                    raise UserError(
                        f"the tokenizer makes its control token {self.tokenizer.id_to_token(index)} of "
                        f"{text[start:end]!r} in a text: give it another token for what it does not know"
                    )
                if self._control[index] or (self._byte[index] and end - start > 1):
                    cuts.append((start + end) // 2)
        if not cuts:
            yield text, ids
            return
        for start, end in pairwise([0, *cuts, len(text)]):
            yield from self._checked(text[start:end], self._encoded([text[start:end]])[0])

    def _pieces(self, text: str) -> Iterator[str]:
        start = 0
        target = PIECE
        while target < len(text) - PIECE // 2:
            if cut := self._harmless_cut(text, target):
                yield text[start:cut]
                start = cut
            target += PIECE
        yield text[start:]

    def _harmless_cut(self, text: str, target: int) -> int | None:
        """A place before `target` where two halves have the tokens of the whole; None if none was found."""
        blanks = [i for i in range(target, target - SEARCHED, -1) if text[i].isspace() != text[i - 1].isspace()]
        for cut in [*blanks[:TRIED], target]:
            left, right = text[cut - WINDOW : cut], text[cut : cut + WINDOW]
            one, other, both = (encoding.ids for encoding in self._encoded([left, right, left + right]))
            if one + other == both:
                return cut
        return None

    def _lost(self, character: str) -> bool:
        """Whether the model has no tokens for a character; one that the normalizer drops, it drops by design."""
        normalizer = self.tokenizer.normalizer
        if (normalizer.normalize_str(character) if normalizer else character).strip():
            ids = self._encoded([character])[0].ids
            if not ids or ("\ufffd" in self.tokenizer.decode(ids) and character != "\ufffd"):
                return True
        self._known.add(character)
        return False


def _groups(pieces: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Numbered pieces, so many together that they have `PIECE` characters."""
    group: list[tuple[int, str]] = []
    size = 0
    for piece in pieces:
        group.append(piece)
        size += len(piece[1])
        if size >= PIECE:
            yield group
            group, size = [], 0
    yield group


def _unknown(tokenizer: Tokenizer) -> tuple[str | None, bool]:
    """The token for what the vocabulary lacks, if the model has one, and whether such text vanishes for want of it."""
    model = json.loads(tokenizer.to_str())["model"]
    if (index := model.get("unk_id")) is not None:  # a Unigram model
        return str(model["vocab"][index][0]), False
    token = model.get("unk_token")
    has_one = token in model["vocab"]
    return token if has_one else None, model["type"] == "BPE" and not has_one
