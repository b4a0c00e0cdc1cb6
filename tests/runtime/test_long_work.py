"""How far long work is: nothing of what is short, then a line a minute with share, rate and time left."""

import time

import pytest

from lrtrain.runtime import long_work
from lrtrain.runtime.long_work import LongWork, how_far, telling


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(long_work.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_there_is_a_line_after_ten_seconds_and_then_one_a_minute(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with LongWork("Tokenizing", 1000, "tokens") as work:
        work.began_at(100)
        for _ in range(300):  # 5 minutes of 2 tokens a second
            clock[0] += 1
            work.advance(2, "a note")
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert lines[0] == "Tokenizing: 12%, 2 tokens a second, 7.3 minutes left, a note"
    assert len(lines) == 5


def test_what_is_over_soon_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with LongWork("work", 3) as work:
        for _ in range(3):
            clock[0] += 3
            work.advance()
    assert capsys.readouterr().err == ""
    with LongWork("work", 3, shown=False) as work:
        clock[0] += 100
        work.advance()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((50, 200, 50, 10.0, "batches"), "25%, 5 batches a second, 30.0 seconds left"),
        ((50, None, 50, 10.0, "batches"), "50, 5 batches a second"),
        ((50, 200, 0, 10.0, "batches"), "25%"),
        ((201, 200, 50, 10.0, "batches"), "201, 5 batches a second"),
        ((4000, 8000, 4000, 2.0, ""), "50%, 2.0 seconds left"),
        ((4000, 8000, 4000, 2.0, "tokens"), "50%, 2,000 tokens a second, 2.0 seconds left"),
    ],
)
def test_what_is_not_known_is_left_out(given: tuple[float, float | None, float, float, str], said: str) -> None:
    assert how_far(*given) == said


def test_work_that_says_nothing_by_itself_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(long_work, "LINE_SECONDS", 0.01)
    lines = iter(["one", "", "two"])
    with telling(lambda: next(lines, "")):
        time.sleep(0.3)
    assert capsys.readouterr().err == "one\ntwo\n"
