"""Tokens to text as they come: whole characters, spaces kept, stop strings found."""

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"
"""What bytes are decoded to that are no whole character yet."""


class TextStream:
    """The text that tokens add to their prompt's, given out as soon as nothing that follows can change it.

    Tokens are decoded together with some before them: by itself a token loses the space that marks it as the beginning
    of a word, and may be a part of a character.

    Args:
        decode: Token ids to text.
        prompt: The tokens that they follow.
        stops: The text ends before the first of these strings.

    Attributes:
        text: All of it so far, given out or not; without a stop string.
        stopped: Whether one was found.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt: Sequence[int], stops: Sequence[str] = ()) -> None:
        if not all(stops):
            raise ValueError("a stop string is empty")
        self.text = ""
        self.stopped = False
        self._decode = decode
        self._stops = stops
        self._before = list(prompt)
        self._since: list[int] = []
        self._given = 0

    def add(self, token: int) -> str:
        """Takes a token; returns the text that can be shown now."""
        self._since.append(token)
        new = text_after(self._before, self._since, self._decode)
        if not new or new.endswith(UNFINISHED):
            return ""
        self._take(new)
        return self._give(len(self.text) - self._held())

    def end(self) -> str:
        """The text that was held back, after the last token."""
        if self._since and not self.stopped:
            self._take(text_after(self._before, self._since, self._decode))
        return self._give(len(self.text))

    def _take(self, new: str) -> None:
        before = len(self.text)
        self.text += new
        # Their text is enough for what follows to be decoded with.
        self._before, self._since = self._since, []
        places = [self.text.find(stop, max(0, before - len(stop) + 1)) for stop in self._stops]
        if found := [place for place in places if place >= 0]:
            self.text = self.text[: min(found)]
            self.stopped = True

    def _held(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        if self.stopped:
            return 0
        return max((n for stop in self._stops for n in range(1, len(stop)) if self.text.endswith(stop[:n])), default=0)

    def _give(self, until: int) -> str:
        given, self._given = self._given, max(self._given, until)
        return self.text[given : self._given]


def text_after(prompt: list[int], continuation: list[int], decode: Callable[[list[int]], str]) -> str:
    """The text that a continuation adds to its prompt's.

    Both are decoded together: by itself a first token loses the space that marks it as the beginning of a word.
    """
    before, whole = decode(prompt), decode(prompt + continuation)
    pairs = zip(before, whole, strict=False)
    return whole[next((i for i, (one, other) in enumerate(pairs) if one != other), len(before)) :]
