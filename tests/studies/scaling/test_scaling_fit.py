"""Scaling laws from points: exact on exact data, true to their intervals on noisy ones, and refused where they must."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from commandline import refusal
from lrtrain.cli.main import main
from lrtrain.runtime.errors import UserError
from lrtrain.studies.scaling import parametric
from lrtrain.studies.scaling.fit_report import verdict
from lrtrain.studies.scaling.isoflop_fit import fit
from lrtrain.studies.scaling.parametric import NAMES, fit_parametric
from lrtrain.studies.scaling.points import Points

HOFFMANN = {"E": 1.69, "A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28}
BUDGETS = np.geomspace(2.2e18, 3.57e19, 5)
A, B = 0.479, 0.521


def curves(noise: float, random: np.random.Generator, sizes: int = 8, budgets: np.ndarray = BUDGETS) -> Points:
    """Losses that are parabolas in ln N, and so in ln D, with minima at N = 0.1 C^A and D = C / (6 N)."""
    budget = np.repeat(budgets, sizes)
    shift = np.tile(np.linspace(-1, 1, sizes), len(budgets))
    parameters = 0.1 * budget**A * np.exp(shift)
    loss = 3 - 0.05 * np.log(budget / budgets[0]) + 0.08 * shift**2 + noise * random.standard_normal(len(budget))
    return Points(budget, parameters, budget / (6 * parameters), loss)


def hoffmann(noise: float, random: np.random.Generator, sizes: int = 8) -> Points:
    """Losses of L(N, D) around the optima that it has at C = 6 N D."""
    E, a, alpha, b, beta = HOFFMANN.values()
    optima = (alpha * a / (beta * b)) ** (1 / (alpha + beta)) * (BUDGETS / 6) ** (beta / (alpha + beta))
    budget = np.repeat(BUDGETS, sizes)
    parameters = np.outer(optima, np.geomspace(0.4, 2.5, sizes)).ravel()
    tokens = budget / (6 * parameters)
    loss = (E + a / parameters**alpha + b / tokens**beta) * np.exp(noise * random.standard_normal(len(budget)))
    return Points(budget, parameters, tokens, loss)


def write(path: Path, points: Points, header: str = "budget,parameters,tokens,loss") -> Path:
    columns = (points.budget, points.parameters, points.tokens, points.loss)
    rows = [",".join(repr(float(value)) for value in row) for row in zip(*columns, strict=True)]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@given(
    vertex=st.floats(-0.9, 0.9),
    curvature=st.floats(0.01, 1.0),
    scale=st.floats(1e5, 1e12),
    sizes=st.integers(3, 9),
)
def test_the_vertex_of_an_exact_parabola_is_exact(vertex: float, curvature: float, scale: float, sizes: int) -> None:
    logs = np.tile(np.linspace(-1, 1, sizes), 3)
    budget = np.repeat([1e18, 2e18, 4e18], sizes)
    parameters = scale * np.exp(logs)
    points = Points(budget, parameters, budget / (6 * parameters), 2 + curvature * (logs - vertex) ** 2)
    for minimum in fit(points, resamples=100).minima:
        assert minimum.excluded == ""
        assert minimum.parameters == pytest.approx(scale * np.exp(vertex), rel=1e-6)
        assert minimum.tokens == pytest.approx(minimum.budget / (6 * minimum.parameters), rel=1e-6)
        assert minimum.loss == pytest.approx(2, abs=1e-9)


def test_exact_data_give_the_exact_power_laws_and_their_coefficients() -> None:
    found = fit(curves(0.0, np.random.default_rng(0)))
    assert found.parameters.exponent == pytest.approx(A, abs=1e-9)
    assert found.tokens.exponent == pytest.approx(B, abs=1e-9)
    assert found.parameters.coefficient == pytest.approx(0.1, rel=1e-6)
    assert found.parameters(BUDGETS) * found.tokens(BUDGETS) * 6 == pytest.approx(BUDGETS, rel=1e-6)


@pytest.mark.parametrize(("budgets", "sizes"), [(5, 8), (4, 4)], ids=["many", "few"])
def test_intervals_cover_the_truth_at_their_rate(budgets: int, sizes: int) -> None:
    random, rounds = np.random.default_rng(1), 200
    covered = {"N": 0, "D": 0}
    for seed in range(rounds):
        found = fit(curves(0.004, random, sizes, np.geomspace(1e18, 3e19, budgets)), resamples=200, seed=seed)
        for name, law, truth in (("N", found.parameters, A), ("D", found.tokens, B)):
            low, high = law.interval(0.9)  # type: ignore[misc]
            covered[name] += low <= truth <= high
    least, most = binom.interval(0.999, rounds, 0.9)
    assert least <= covered["N"] <= most
    assert least <= covered["D"] <= most


@pytest.mark.parametrize("noise", [0.002, 0.01])
def test_the_interval_of_the_exponent_is_about_as_wide_as_fits_are_spread(noise: float) -> None:
    truth, rounds = HOFFMANN["beta"] / (HOFFMANN["alpha"] + HOFFMANN["beta"]), 100
    found = [fit(hoffmann(noise, np.random.default_rng(seed)), resamples=200, seed=seed) for seed in range(rounds)]
    low, high = np.array([iso.parameters.interval() for iso in found]).T
    assert ((low <= truth) & (truth <= high)).sum() >= binom.ppf(0.001, rounds, 0.95)
    spread = np.std([iso.parameters.exponent for iso in found])
    assert 0.9 <= np.median(high - low) / (3.92 * spread) <= 1.4


def test_the_exponents_of_a_known_law_lie_in_their_intervals() -> None:
    truth = HOFFMANN["beta"] / (HOFFMANN["alpha"] + HOFFMANN["beta"])
    points = hoffmann(0.002, np.random.default_rng(2))
    isoflop, law = fit(points), fit_parametric(points, resamples=100)
    for interval in (isoflop.parameters.interval(0.95), law.exponent_intervals(0.95)[0]):
        assert interval is not None
        assert interval[0] <= truth <= interval[1]
        assert interval[1] - interval[0] < 0.1
    for name, (low, high) in law.intervals(0.95).items():
        assert low <= HOFFMANN[name] <= high


@pytest.mark.parametrize(
    ("noise", "rounds", "resamples"),
    [(0.004, 4, 40), *(pytest.param(noise, 50, 100, marks=pytest.mark.slow) for noise in (0.002, 0.004, 0.01))],
)
def test_intervals_of_the_parametric_law_cover_the_truth_at_their_rate(
    noise: float, rounds: int, resamples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parametric, "EXPONENTS", (0.25, 0.4))  # starts that are near, for time
    covered = dict.fromkeys([*NAMES, "a"], 0)
    for seed in range(rounds):
        law = fit_parametric(hoffmann(noise, np.random.default_rng(seed)), resamples=resamples, seed=seed)
        intervals = {**law.intervals(), "a": law.exponent_intervals()[0]}
        truth = {**HOFFMANN, "a": HOFFMANN["beta"] / (HOFFMANN["alpha"] + HOFFMANN["beta"])}
        for name, (low, high) in intervals.items():
            covered[name] += low <= truth[name] <= high
    assert min(covered.values()) >= binom.ppf(0.005, rounds, 0.93), covered  # 0.93 is what it measures as


def test_the_parametric_law_is_exact_on_exact_data_and_barely_moved_by_an_outlier() -> None:
    points = hoffmann(0.0, np.random.default_rng(0))
    exact = fit_parametric(points, resamples=1)
    assert dict(zip(NAMES, exact.values, strict=True)) == pytest.approx(HOFFMANN, rel=0.02)
    assert exact(points.parameters, points.tokens) == pytest.approx(points.loss, rel=1e-5)
    assert not exact.at_edge
    points.loss[7] *= 1.3
    moved = fit_parametric(points, resamples=1)
    assert moved.exponents()[0] == pytest.approx(exact.exponents()[0], abs=0.01)


def test_less_noise_gives_narrower_intervals_and_another_seed_the_same_law() -> None:
    widths = []
    for noise in (0.001, 0.004):
        low, high = fit(curves(noise, np.random.default_rng(3))).parameters.interval(0.95)  # type: ignore[misc]
        widths.append(high - low)
    assert widths[1] == pytest.approx(4 * widths[0], rel=0.15)
    points = curves(0.004, np.random.default_rng(3))
    assert fit(points, seed=1).parameters.exponent == fit(points, seed=2).parameters.exponent


def test_three_sizes_give_no_interval_and_with_a_second_seed_they_do() -> None:
    once = curves(0.004, np.random.default_rng(4), sizes=3)
    alone = fit(once)
    assert alone.parameters.interval(0.95) is None
    assert alone.parameters.band(BUDGETS, 0.95) is None
    assert verdict(alone).startswith("not comparable, no interval")
    again = curves(0.004, np.random.default_rng(5), sizes=3)
    both = Points(*(np.concatenate(pair) for pair in zip(vars(once).values(), vars(again).values(), strict=True)))
    assert fit(both).parameters.interval(0.95) is not None


def test_a_curve_without_a_minimum_in_its_range_is_left_out_and_said() -> None:
    points = curves(0.0, np.random.default_rng(0))
    first, second, third = (points.budget == BUDGETS[index] for index in range(3))
    points.loss[first] = 6 - points.loss[first]
    points.loss[second] = 3 + 1e-2 * np.log(points.parameters[second] / 1e6) ** 2
    points.loss[third] = 3 + 1e-2 * np.log(points.parameters[third] / 1e12) ** 2
    found = fit(points)
    said = [minimum.excluded for minimum in found.minima]
    assert "opens downward" in said[0]
    assert "below the smallest N" in said[1]
    assert "above the largest N" in said[2]
    assert said[3:] == ["", ""]
    assert found.parameters.exponent == pytest.approx(A, abs=1e-9)
    points.loss[points.budget == BUDGETS[3]] = np.linspace(4, 3, 8) - np.linspace(-1, 1, 8) ** 2
    with pytest.raises(UserError, match="1 of 5 budgets have a minimum"):
        fit(points)


def test_the_verdict_compares_within_the_papers_budgets_alone() -> None:
    random = np.random.default_rng(6)
    assert verdict(fit(curves(0.002, random))).startswith("reproduced: N_opt exponent 0.4")
    assert verdict(fit(hoffmann(0.0005, random))).startswith("not reproduced: N_opt exponent 0.4")
    small = fit(curves(0.002, random, budgets=BUDGETS / 1e6))
    assert verdict(small).startswith("not comparable, budgets 2.2e+12 to 3.57e+13 FLOPs")


def test_fit_prints_and_writes_figure_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = curves(0.002, np.random.default_rng(7))
    first = points.budget == BUDGETS[0]
    points.loss[first] = np.linspace(3.1, 2.9, 8)
    file = write(tmp_path / "given.csv", points)
    assert main(["scaling", "fit", str(file), "--resamples", "100", "--out", str(tmp_path / "new/fit")]) == 0
    out = capsys.readouterr().out
    assert "verdict: reproduced" in out
    assert (tmp_path / "new/fit/fit.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "new/fit/fit.json").read_text())
    low, high = content["N_opt"]["interval"]
    assert low < content["N_opt"]["exponent"] < high
    assert f"C^{content['N_opt']['exponent']:.3f}" in out
    assert [bool(item["excluded"]) for item in content["budgets"]] == [True, *[False] * 4]
    assert f"left out: {content['budgets'][0]['excluded']}" in out
    assert "parameters" not in content["budgets"][0]
    assert set(content["parametric"]["intervals"]) == {*NAMES, "a", "b"}


HEADER = "budget,parameters,tokens,loss"
ROWS = [f"{c},{n},{c / 6 / n},3" for c in (1e18, 2e18, 3e18) for n in (1e8, 2e8, 3e8)]


@pytest.mark.parametrize(
    ("lines", "flags", "said"),
    [
        ([HEADER, *ROWS[:6]], [], "points.csv has 2 budgets: a power law needs 3 or more"),
        ([HEADER], [], "points.csv has 0 budgets"),
        ([], [], "points.csv lacks the column budget"),
        ([HEADER, *ROWS[:8]], [], "points.csv: budget 3e+18 has 2 sizes and a parabola needs 3"),
        ([HEADER, *ROWS, "3e18,1e8,5e9,nan"], [], "points.csv line 11: loss is 'nan', not a positive number"),
        ([HEADER, *ROWS, "3e18,1e8,5e9"], [], "points.csv line 11: loss is None, not a positive number"),
        ([HEADER, *ROWS, "3e18,big,5e9,3"], [], "points.csv line 11: parameters is 'big', not a positive number"),
        ([HEADER.replace("loss", "los"), *ROWS], [], "points.csv lacks the column loss"),
        ([HEADER, *ROWS], ["--parameters", "non-embedding"], "points.csv lacks the column non_embedding"),
        ([HEADER, *ROWS], ["--resamples", "5"], "--resamples 5: an interval needs at least 100"),
        ([HEADER, *ROWS], ["--seed", "-1"], "--seed -1: give at least 0"),
        ([HEADER, *ROWS], ["--resample", "500"], "unrecognized arguments: --resample 500"),
        ([HEADER, *ROWS], [], "0 of 3 budgets have a minimum, a power law needs 2: 1e+18: "),
    ],
)
def test_points_that_cannot_be_fitted_are_refused_in_one_line(
    lines: list[str], flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "points.csv"
    file.write_text("\n".join(lines) + "\n")
    assert said in refusal(["scaling", "fit", str(file), *flags], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["points.csv"]


def test_files_that_are_not_there_or_cannot_be_written_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(["scaling", "fit", str(tmp_path)], capsys).startswith(f"{tmp_path}/points.csv does not exist")
    file = write(tmp_path / "points.csv", curves(0.0, np.random.default_rng(0)))
    out = ["--out", "/dev/null/fit", "--resamples", "100"]
    assert refusal(["scaling", "fit", str(file), *out], capsys).startswith("cannot write into /dev/null/fit")
    file.write_bytes(b"\xff\xfe\x00")
    assert "points.csv is no CSV file" in refusal(["scaling", "fit", str(file)], capsys)
