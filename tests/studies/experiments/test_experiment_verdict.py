"""An experiment's verdict is computed from its runs, and a difference counts only beyond the spread over seeds."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import stand_in_fit
from lrtrain.runtime.errors import UserError
from lrtrain.studies.experiments.definition import LOSS, Check
from lrtrain.studies.experiments.records import value
from lrtrain.studies.experiments.verdict import Finding, compared, judge, overall, welch
from lrtrain.studies.jobs import Outcome

LABELS = {"a": "Spectron", "b": "self-guided", "c": "AdamW"}
NARROW = {"a": [3.00, 3.01, 3.02], "b": [3.20, 3.21, 3.22], "c": [3.50, 3.52, 3.51]}


def found(kind: str, values: dict[str, list], *variants: str, low: float | None = None, high: float | None = None):  # type: ignore[no-untyped-def]
    check = Check(**{kind: variants or ("a", "b")}, between=(low, high))
    return judge(check, lambda name, metric, statistic: values[name], LABELS)


def test_an_order_holds_where_every_neighbor_is_ahead_beyond_the_spread() -> None:
    finding = found("order", NARROW, "a", "b", "c")
    assert finding.outcome == "reproduced"
    assert finding.text.startswith("Spectron 3.0100 ± 0.01 < self-guided 3.2100 ± 0.01 (p = ")
    assert found("order", NARROW, "c", "b").outcome == "not reproduced"
    assert "AdamW 3.5100 ± 0.01 > self-guided" in found("order", NARROW, "c", "b").text


def test_a_difference_within_the_spread_is_no_difference() -> None:
    wide = {"a": [3.0, 3.1, 2.9], "b": [3.02, 3.12, 2.92]}
    assert found("order", wide).outcome == "not reproduced"
    assert "≈" in found("order", wide).text
    assert found("reaches", wide).outcome == "reproduced"
    assert "equal within the spread" in found("reaches", wide).text


def test_a_variant_reaches_another_unless_it_lies_above_it() -> None:
    assert found("reaches", NARROW, "a", "b").outcome == "reproduced"
    assert found("reaches", NARROW, "b", "a").outcome == "not reproduced"


def test_runs_that_diverged_lie_above_all_others() -> None:
    values = {"a": [3.0, 3.1], "b": [math.inf, math.inf], "c": [3.0, math.inf]}
    assert found("order", values).outcome == "reproduced"
    assert found("order", values, "b", "a").outcome == "not reproduced"
    assert found("order", values, "a", "c").outcome == "not reproduced"
    assert found("order", {"a": [3.0, 3.1], "b": [math.inf]}).outcome == "reproduced"


@pytest.mark.parametrize(
    ("kind", "a", "b", "outcome"),
    [
        ("ratio", [15, 20, 16], [1, 1, 1], "reproduced"),
        ("ratio", [2, 2.1, 2.2], [1, 1, 1], "not reproduced"),
        ("ratio", [5, 15, 9], [1, 1, 1], "not comparable"),
        ("ratio", [5, 15, 9], [0, 1, 1], "not comparable"),
        ("difference", [30, 31, 30], [10, 11, 10], "reproduced"),
        ("difference", [10, 11, 10], [30, 31, 32], "not reproduced"),
    ],
)
def test_a_measured_number_is_held_against_the_published_interval(
    kind: str, a: list[float], b: list[float], outcome: str
) -> None:
    finding = found(kind, {"a": a, "b": b}, low=10, high=30)
    assert finding.outcome == outcome
    assert "the paper's 10 to 30" in finding.text


def test_a_bound_holds_for_every_run_or_not_at_all() -> None:
    assert found("bound", {"a": [0.9, 0.99]}, "a", high=1).outcome == "reproduced"
    worst = found("bound", {"a": [0.9, 1.01]}, "a", high=1)
    assert (worst.outcome, worst.text) == ("not reproduced", "Spectron 1.0100, the paper's at most 1")
    assert found("bound", {"a": [0.2]}, "a", low=0.1).outcome == "reproduced"


def test_what_is_missing_is_not_comparable() -> None:
    assert found("order", {"a": [3.0, None], "b": [3.0, 4.0]}).text == "not all runs of Spectron have a value"
    assert found("order", {"a": [3.0], "b": [4.0]}).text == "one seed has no spread"
    assert found("order", {"a": [], "b": [4.0, 4.1]}).outcome == "not comparable"


def test_the_verdict_is_the_worst_finding_of_the_papers_claims() -> None:
    good, bad, unclear = (
        Finding(outcome, outcome[:3]) for outcome in ("reproduced", "not reproduced", "not comparable")
    )
    ours = Finding("not reproduced", "ours", ours=True)
    assert overall([good, ours]) == ("reproduced", "reproduced: rep")
    assert overall([good, unclear]) == ("not comparable", "not comparable: rep; not")
    assert overall([unclear, bad, good])[0] == "not reproduced"
    assert overall([good], "other data") == ("not comparable", "not comparable: other data (in these runs: rep)")


def test_what_is_of_no_paper_holds_or_does_not() -> None:
    good, unclear = Finding("reproduced", "rep"), Finding("not comparable", "not")
    assert overall([good], of_a_paper=False)[1] == "holds: rep"
    assert overall([good, unclear], of_a_paper=False)[1] == "cannot be told: rep; not"
    assert overall([Finding("not reproduced", "bad")], of_a_paper=False)[1] == "does not hold: bad"


def test_variants_that_nothing_is_claimed_of_are_told_by_their_means() -> None:
    text, p = compared({"second": [3.20, 3.21, 3.22], "first": [3.00, 3.01, 3.02], "third": [3.21, 3.23, 3.22]})
    assert text.startswith("first 3.0100 ± 0.01 < second 3.2100 ± 0.01 (p = ")
    assert " ≈ third 3.2200 ± 0.01 (p = 0.29)" in text
    assert (
        p["first"]["second"] == p["second"]["first"] == pytest.approx(2 * welch([3.00, 3.01, 3.02], [3.20, 3.21, 3.22]))
    )
    assert compared({"a": [3.0], "b": [4.0]})[0] == "a 3.0000 ? b 4.0000 (one seed has no spread)"
    assert compared({"a": [3.0, None], "b": [4.0, 4.1]})[0].endswith("; not all runs of a have a value")
    assert compared({"a": [3.0, 3.1], "b": [math.inf]})[1]["b"]["a"] == 0


losses = st.lists(st.floats(1, 10), min_size=2, max_size=5)


@given(losses, losses)
def test_of_two_orders_at_most_one_is_significant(first: list[float], second: list[float]) -> None:
    assert not (welch(first, second) < 0.05 and welch(second, first) < 0.05)
    shifted = [loss + 100 for loss in first]
    assert welch(first, shifted) < welch(shifted, first)


def run_with(folder: Path, **series: list[float]) -> Outcome:
    folder.mkdir(parents=True)
    for step in range(3):
        metrics = {name.replace("__", "/"): values[step] for name, values in series.items()}
        stand_in_fit.record(folder, step=step, metrics=metrics)
    stand_in_fit.record(folder, step=2, metrics={"val/loss": 4.5})  # a resumed run logs a step again
    return Outcome("finished", 4.5, folder, "", 1.0)


def test_a_statistic_is_of_all_metrics_that_a_pattern_matches(tmp_path: Path) -> None:
    outcome = run_with(
        tmp_path / "run/0001", val__loss=[5, 4, 6], spectral__x__norm=[1, 2, 3], spectral__y__norm=[3, 4, 5]
    )
    assert value(outcome, LOSS, "last") == 4.5
    assert value(outcome, LOSS, "rise") == 0.5
    assert value(outcome, "spectral/*/norm", "mean") == 3
    assert value(outcome, "spectral/*/norm", "max") == 5
    assert value(outcome, "spectral/x/norm", "last") == 3
    with pytest.raises(UserError, match=r"run run/0001 has no metric 'spectral/x/nrm'; there are spectral/x/norm"):
        value(outcome, "spectral/x/nrm", "last")


def test_a_run_that_did_not_finish_has_an_infinite_loss_or_nothing(tmp_path: Path) -> None:
    diverged = Outcome("diverged", math.inf, tmp_path, "stopped", 1.0)
    assert value(diverged, LOSS, "last") == math.inf
    assert value(diverged, "spectral/update_over_lr", "max") is None
    assert value(Outcome("failed", None, None, "killed", 1.0), LOSS, "last") is None


@pytest.mark.parametrize("second", [[3.1, 3.4, 3.2], [2.8, 3.0], [3.05, 9.0, 3.0, 3.3]])
def test_the_test_is_welchs(second: list[float]) -> None:
    from scipy.stats import ttest_ind

    first = [3.0, 3.1, 2.9]
    expected = ttest_ind(first, second, equal_var=False, alternative="less").pvalue
    assert welch(first, second) == pytest.approx(expected, rel=1e-9)
