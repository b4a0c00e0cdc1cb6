"""How far long work is: a bar on a terminal, a line a minute elsewhere, with share, rate and time left; on stderr."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from lrtrain.runtime.units import duration

if TYPE_CHECKING:
    from rich.progress import Progress

FIRST_SECONDS, LINE_SECONDS = 10.0, 60.0
"""Until the first line where there is no terminal, and between two of them."""


class LongWork:
    """Tells how far work is whose amount is counted; nothing is said of what is over within seconds.

    Args:
        what: Is done, as `Tokenizing`.
        total: Amount of it; None or 0 where nobody knows.
        unit: Of the amount, in the plural, for the rate; empty for none.
        shown: Whether anything is said.
    """

    def __init__(self, what: str, total: float | None, unit: str = "", shown: bool = True) -> None:
        self.what, self.total, self.unit = what, total or None, unit
        self._shown, self._bar = shown, _bar(unit) if shown and sys.stderr.isatty() else None
        self._lines = Lines()
        self._begun, self._first = time.monotonic(), 0.0
        self._done = 0.0

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._bar.add_task(self.what, total=self.total, note="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def began_at(self, done: float) -> None:
        """Notes what an earlier attempt had done: no part of the rate."""
        self._first = self._done = done

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Adds to what is done."""
        self.update(self._done + amount, note)

    def update(self, done: float, note: str = "") -> None:
        """Says how much is done in all, and whatever else is worth a word."""
        self._done = done
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, note=note)
        elif self._shown and self._lines.due():
            print(f"{self.what}: {self.line()}{f', {note}' if note else ''}", file=sys.stderr, flush=True)

    def line(self) -> str:
        """`45 %, 1,234 tokens a second, 3.0 minutes left`: what is known of these."""
        return how_far(self._done, self.total, self._done - self._first, time.monotonic() - self._begun, self.unit)


class Lines:
    """Says when a line is due: after ten seconds, then once a minute."""

    def __init__(self) -> None:
        self._next = time.monotonic() + FIRST_SECONDS

    def due(self) -> bool:
        """Whether one is, which is then taken to be said."""
        if (now := time.monotonic()) < self._next:
            return False
        self._next = now + LINE_SECONDS
        return True


def how_far(done: float, total: float | None, lately: float, seconds: float, unit: str = "") -> str:
    """Share, rate and time left of work of which `lately` was done in `seconds`; a total that is passed was none."""
    if total and done > total:
        total = None
    parts = [f"{done / total:.0%}" if total else f"{done:,.0f}"]
    rate = lately / seconds if seconds > 0 else 0.0
    if rate and unit:
        parts.append(f"{rate:,.0f} {unit} a second" if rate >= 10 else f"{rate:,.2g} {unit} a second")
    if rate and total:
        parts.append(f"{duration(max(0.0, (total - done) / rate))} left")
    return ", ".join(parts)


@contextmanager
def telling(line: Callable[[], str]) -> Iterator[None]:
    """Prints `line()` once a minute inside `with`, for work that says nothing by itself; an empty one is left out."""
    over = threading.Event()

    def tell() -> None:
        while not over.wait(LINE_SECONDS):
            if text := line():
                print(text, file=sys.stderr, flush=True)

    thread = threading.Thread(target=tell, name="telling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _bar(unit: str) -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    note = TextColumn("{task.fields[note]}")
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(show_speed=not unit)]
    return Progress(*columns, TextColumn("left"), TimeRemainingColumn(), note, console=Console(stderr=True))
