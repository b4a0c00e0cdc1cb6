"""Columns of text."""

import pytest

from lrtrain.runtime.table import table

ROWS = [["name", "loss", "note"], ["a", "3.25", "[red]kept[/red]"], ["longer", "12", ""], ["c", "", "–"]]


def test_numbers_stand_to_the_right_and_text_to_the_left() -> None:
    assert table(ROWS).splitlines() == [
        "name    loss  note",
        "a       3.25  [red]kept[/red]",
        "longer    12",
        "c             –",
    ]
    assert table(ROWS, numbers=False).splitlines()[2] == "longer  12"


def test_short_rows_are_filled() -> None:
    assert table([["a", "b"], ["c"]]) == "a  b\nc"


def test_a_long_cell_is_whole_and_without_color_wherever_it_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    long = "key=0.01  " * 500 + "end"
    assert table([["point", "n"], [long, "1"]]).splitlines()[1] == f"{long}  1"
