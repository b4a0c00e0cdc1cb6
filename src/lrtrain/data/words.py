"""Text to the tokens of a byte-level BPE from memory, a word at a time, in half the library's processor time.

The library spends most of it on cutting a text into words, which it does anew for each; `re` and a dictionary do it in
less. They hold Python's lock meanwhile, so that threads gain nothing by it: processes do (`data/encoder_processes.py`).
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from typing import Any

import numpy as np
from tokenizers import Tokenizer

MOST_WORDS = 2**19  # kept in memory, some 80 MB
LONGEST_TEXT = 2**18  # characters: the words of one text are all there at once
PRE_TOKENIZER = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


class Words(dict[str, bytes]):
    """The tokens of each word that came, by the library, as the bytes of their `dtype`.

    Words are those of GPT-2's pattern: `'s|'t|'re|'ve|'m|'ll|'d`, letters, numbers or other characters with a space
    before, white space but for its last character where a word follows. No token crosses from one into the next.
    """

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype[Any]) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._dtype = dtype
        added = [re.escape(token.content) for token in tokenizer.get_added_tokens_decoder().values() if token.content]
        left, self._pattern = _patterns()
        self._left = re.compile("|".join([left, *added]))

    @classmethod
    def of(cls, tokenizer: Tokenizer, dtype: np.dtype[Any]) -> "Words | None":
        """The words of a tokenizer that cuts texts by GPT-2's pattern and nothing else; None for any other."""
        made = json.loads(tokenizer.to_str())
        cut = made["pre_tokenizer"] or {}
        known = made["normalizer"] is None and {key: cut.get(key) for key in PRE_TOKENIZER} == PRE_TOKENIZER
        return cls(tokenizer, dtype) if known and made["model"]["type"] == "BPE" else None

    def encode(self, text: str) -> np.ndarray | None:
        """The tokens of a text, not to be written to; None for one that is left to the library.

        That is a long one, one that spells an added token, or one with a character that a version of Unicode may have
        put into another class since, or that is beyond its first plane.
        """
        if len(text) > LONGEST_TEXT or self._left.search(text):
            return None
        return np.frombuffer(b"".join(map(self.__getitem__, self._pattern.findall(text))), self._dtype)

    def __missing__(self, word: str) -> bytes:
        ids = np.array(self._tokenizer.encode(word, add_special_tokens=False).ids, self._dtype).tobytes()
        if len(self) < MOST_WORDS:
            self[word] = ids
        return ids


@cache
def _patterns() -> tuple[str, re.Pattern[str]]:
    """What matches a character whose class is not certain, and GPT-2's pattern over the certain ones."""
    classes = {code: kind for code in range(2**16) if (kind := _class(chr(code)))}
    letter, number, space = (_ranges(code for code, kind in classes.items() if kind == k) for k in "LNS")
    words = "|".join(
        [
            "'s|'t|'re|'ve|'m|'ll|'d",
            f" ?[{letter}]+",
            f" ?[{number}]+",
            f" ?[^{space}{letter}{number}]+",
            f"[{space}]+(?![^{space}])",
            f"[{space}]+",
        ]
    )
    return f"[^{_ranges(classes)}]", re.compile(words)


def _class(character: str) -> str | None:
    """L, N, S (white space) or O, if it was so in Unicode 3.2, too; None if it was not, or was not there."""
    now, then = unicodedata.category(character), unicodedata.ucd_3_2_0.category(character)
    if now[0] != then[0] or now in ("Cn", "Cs", "Co"):
        return None
    if now[0] == "Z" or character in "\t\n\v\f\r\x85":
        return "S"
    return now[0] if now[0] in "LN" else "O"


def _ranges(codes: Any) -> str:
    """Sorted code points as the inside of a set of `re`."""

    def runs() -> Iterator[str]:
        for _, run in groupby(enumerate(codes), lambda pair: pair[1] - pair[0]):
            found = [code for _, code in run]
            yield f"\\u{found[0]:04x}-\\u{found[-1]:04x}"

    return "".join(runs())
