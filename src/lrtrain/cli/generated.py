"""What `lrtrain generate` prints: texts as they come, or a JSON object for each."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from lrtrain.config.text_generation import Text


class InOrder:
    """Writes rows that come at once one after another: the first unfinished one as it comes, later ones in turn."""

    def __init__(self, rows: int) -> None:
        self._waiting: list[list[str]] = [[] for _ in range(rows)]
        self._ended = [False] * rows
        self._turn = 0

    def add(self, row: int, text: str) -> None:
        """Text of a row."""
        if row == self._turn:
            _write(text)
        else:
            self._waiting[row].append(text)

    def end(self, row: int) -> None:
        """A row is whole."""
        self._ended[row] = True
        while self._turn < len(self._ended) and self._ended[self._turn]:
            self._turn += 1
            if self._turn < len(self._ended):
                _write("".join(self._waiting[self._turn]))


class Printed:
    """Prompts and continuations of a batch: as texts, under a title where there are several, or as JSON lines.

    Args:
        prompts: Line of the file, None without one, and text of each prompt.
        samples: Of each.
        as_json: An object a sample instead of text.
        several: Whether the texts have titles.
    """

    def __init__(self, prompts: Sequence[tuple[int | None, str]], samples: int, as_json: bool, several: bool) -> None:
        self._rows = [(line, prompt, sample) for line, prompt in prompts for sample in range(1, samples + 1)]
        self._samples = samples
        self._as_json = as_json
        self._order = InOrder(len(self._rows))
        if not as_json:
            for row, (_, prompt, _) in enumerate(self._rows):
                self._order.add(row, (f"--- {self._name(row)}\n" if several else "") + prompt)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt) and not self._as_json:
            _write("\n")

    def piece(self, row: int, text: str) -> None:
        """Takes what has come of a row."""
        if not self._as_json:
            self._order.add(row, text)

    def end(self, row: int, text: "Text") -> None:
        """Takes the whole of a row. Says on stderr where the context ended it."""
        line, prompt, sample = self._rows[row]
        if self._as_json:
            given = {"line": line, "prompt": prompt, "sample": sample, **vars(text)}
            if line is None:
                del given["line"]
            self._order.add(row, json.dumps(given, ensure_ascii=False) + "\n")
        else:
            self._order.add(row, "\n")
        self._order.end(row)
        if text.ending == "context":
            name = f"{self._name(row)}: " if len(self._rows) > 1 else ""
            print(
                f"generate: {name}ended where the context is full; --context goes beyond", file=sys.stderr, flush=True
            )

    def _name(self, row: int) -> str:
        line, _, sample = self._rows[row]
        of = f"sample {sample} of {self._samples}" if self._samples > 1 else ""
        return ", ".join(filter(None, ["" if line is None else f"line {line}", of]))


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
