"""What a page holds, and what its scripts make of it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lrtrain.studies.pages import document
from lrtrain.studies.pages.document import SCRIPTS, Document, table
from lrtrain.studies.pages.drawn import Band, Choice, Heatmap, Panel, Shares
from lrtrain.studies.pages.figure_json import COLUMNS, as_json

X = np.array([1.0, 2.0, 3.0])
PANEL = Panel("t", "step", "loss", [Band("a", 2, X, X, X - 0.5, X + 0.5, 3.0)])


def test_what_is_not_finite_is_null_and_a_range_is_there_where_there_is_one() -> None:
    y = np.array([1.23456789, np.nan, np.inf])
    single = Panel("t", "step", "loss", [Band("a", 1, X, y, y, y, np.inf)])
    ((_, axes),) = as_json(single)["panels"].items()
    (band,) = axes["step"]["bands"]
    assert band == {"label": "a", "runs": 1, "last": None, "x": [1.0, 2.0, 3.0], "mean": [1.2346, None, None]}
    ((_, axes),) = as_json(PANEL)["panels"].items()
    assert axes["step"]["bands"][0]["low"] == [0.5, 1.5, 2.5]


def test_many_steps_of_a_heatmap_are_averaged_and_gaps_stay_gaps() -> None:
    values = np.stack([np.arange(2.0 * COLUMNS), np.full(2 * COLUMNS, np.nan)])
    found = as_json(Heatmap("t", np.arange(2 * COLUMNS), ["a", "b"], values))
    assert len(found["steps"]) == COLUMNS
    assert found["steps"][-1] == 2 * COLUMNS - 1
    assert found["rows"][0]["values"][:2] == [0.5, 2.5]
    assert set(found["rows"][1]["values"]) == {None}


def test_a_page_holds_everything_and_nothing_that_it_shows_can_break_out_of_it(tmp_path: Path) -> None:
    page, evil = Document(), "</script><b>&"
    page.section("One & two", evil)
    page.figures(
        [Choice(evil, {evil: {"steps": PANEL, "tokens": PANEL}}), Shares("s", [evil], {"a": [40.0], "b": [60.0]})]
    )
    page.missing(evil)
    page.add(table(["a", "b"], [[evil, "1"]], "sortable"))
    page.write(evil, evil, tmp_path / "new/page.html", "why")
    text = (tmp_path / "new/page.html").read_text()
    assert evil not in text
    assert text.count("</script>") == text.count("<script") == 2
    assert re.findall(r'(?:src|href)="(?!#)[^"]*"|url\((?!#)[^)]*\)|@import|https?://(?!www\.w3\.org/)', text) == []
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert json.loads(data)[0]["panels"].keys() == {evil}
    assert '<a href="#part-one---two">One &amp; two</a>' in text
    assert 'id="part-one---two"' in text


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_scripts_choose_ticks_limits_and_digits() -> None:
    folder = Path(document.__file__).parent
    program = "\n".join((folder / name).read_text() for name in SCRIPTS if name not in ("begin.js", "tables.js"))
    band = {"x": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "mean": [9, 3, 3, 3, 3, 3, 3, 3, 3, 3, 2]}
    asked = f"""
    const panel = {{ bound: null }}, bands = [{json.dumps(band)}];
    console.log(JSON.stringify({{
      ticks: ticks(0, 10, 5), small: ticks(2.31, 2.35, 4), decades: logTicks(0.01, 100), octaves: logTicks(1, 30),
      digits: [0, 2.345678, 0.00123, 12345.6, 3.2e18].map(digits),
      cut: limits(panel, bands, false, false).map((v) => +v.toFixed(2)),
      whole: limits(panel, bands, false, true)[1] > 9,
      flat: limits(panel, [{{ x: [1], mean: [2] }}], false, false),
      none: limits(panel, [{{ x: [1], mean: [null] }}], false, false),
      line: path([0, 1, 2, 3], [5, null, 6, 7]), ends: [colorAt(0), colorAt(1)],
    }}));"""
    run = subprocess.run(["node", "-e", program + asked], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == {
        "ticks": [0, 2, 4, 6, 8, 10],
        "small": [2.31, 2.32, 2.33, 2.34, 2.35],
        "decades": [0.01, 0.1, 1, 10, 100],
        "octaves": [1, 2, 5, 10, 20],
        "digits": ["0", "2.3457", "0.00123", "12,346", "3.2e18"],
        "cut": [1.94, 3.06],
        "whole": True,
        "flat": [1.776, 2.224],
        "none": None,
        "line": "M0.0 5.0M2.0 6.0L3.0 7.0",
        "ends": ["rgb(68,1,84)", "rgb(253,231,37)"],
    }
