"""Groups, curves and tables of runs whose every point is known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.units import short
from lrtrain.studies.compare.comparison import compare, figure
from lrtrain.studies.compare.curves import BINS, Curve, band, curve, reached
from lrtrain.studies.compare.figure import COLORS, draw, looks, picture
from lrtrain.studies.compare.groups import Group, check_data, differing, group_runs, ranked
from lrtrain.studies.compare.panels import all_panels, metric_panel, share_of_time, spectral_panels
from lrtrain.studies.compare.rates_table import best_rates
from lrtrain.studies.experiments.experiment_figure import over_x
from lrtrain.studies.pages.drawn import Band, Panel, Shares
from lrtrain.tracking.runs import TrackedRun
from lrtrain.tracking.series import Series

AXES = ("throughput/tokens_seen", "throughput/flops", "throughput/seconds")


def run(name: str = "a", number: int = 1, params: dict[str, str] | None = None, **metrics: Any) -> TrackedRun:
    """A run; a metric is its values by step, `__` in its name for `/`."""
    series = {
        key.replace("__", "/"): Series(np.array(list(of_key), dtype=np.int64), np.array(list(of_key.values()), float))
        for key, of_key in metrics.items()
    }
    last = {key: float(of_key.value[-1]) for key, of_key in series.items()}
    return TrackedRun(f"{name}{number}", name, f"{name}/{number:04d}", "FINISHED", 0, 1, params or {}, {}, last, series)


def test_a_label_of_several_names_is_one_group_and_a_name_of_several_labels_is_in_each() -> None:
    runs = [run("a", 1), run("a", 2), run("b"), run("c")]
    groups = group_runs(runs, {"a": ["x", "y", "x"], "b": ["x"]})
    named = {group.label: [r.run_name for r in group.runs] for group in groups}
    assert named == {"x": ["a/0001", "a/0002", "b/0001"], "y": ["a/0001", "a/0002"], "c": ["c/0001"]}


def test_runs_of_a_study_are_grouped_by_their_point() -> None:
    runs = [run("k/trial-0000", 1), run("k/trial-0000", 2), run("k/trial-0001", 1)]
    for one, point in zip(runs, ("lr 0.1", "lr 0.1", "lr 0.2"), strict=True):
        one.tags["lrtrain.point"] = point
    assert [(group.label, len(group.runs)) for group in group_runs(runs, {})] == [("lr 0.1", 2), ("lr 0.2", 1)]


def test_runs_of_a_name_that_were_trained_in_different_ways_are_no_repetitions() -> None:
    hidden = "model.optimizers.hidden"

    def trained(number: int, lr: str, seed: str = "0", kind: str = "lrtrain.optim.Spectron", **more: str) -> TrackedRun:
        params = {f"{hidden}.class_path": kind, f"{hidden}.init_args.lr": lr, "seed_everything": seed, **more}
        return run("a", number, params, loss={0: 1.0})

    runs = [trained(1, "0.1"), trained(2, "0.02"), trained(3, "0.02", seed="1"), trained(4, "0.02", name="x")]
    found = {group.label: [one.run_name for one in group.runs] for group in group_runs(runs, {"a": ["a"]})}
    assert found == {"a (hidden.lr 0.02)": ["a/0002", "a/0003", "a/0004"], "a (hidden.lr 0.1)": ["a/0001"]}
    assert [group.label for group in group_runs([runs[1], trained(5, "0.02", kind="my.Own", nesterov="true")], {})] == [
        "a (optimizers.hidden Spectron)",
        "a (optimizers.hidden Own)",
    ]
    named = group_runs(runs, {"a": ["mine"]})
    assert [(group.label, len(group.runs)) for group in named] == [("mine", 4)]
    assert check_data(named) == ["mine averages runs that are no repetitions: hidden.lr 0.1; hidden.lr 0.02"]
    assert check_data(group_runs(runs, {"a": ["a"]})) == []


def test_groups_are_ranked_by_their_mean_and_diverged_ones_are_last() -> None:
    losses = {"b": [3.0, 5.0], "n": [np.nan], "a": [3.5, 3.6], "i": [np.inf]}
    groups = [Group(name, [run(name, loss={0: v}) for v in values]) for name, values in losses.items()]
    assert [group.label for group in ranked(groups, "loss")] == ["a", "b", "i", "n"]


def test_runs_of_another_tokenizer_or_other_data_are_named() -> None:
    def made(**changes: str) -> dict[str, str]:
        manifest = {"tokenizer_sha256": "f" * 64, "train.tokens": "10", "val.tokens": "5", "val.chunks.0.sha256": "abc"}
        return {f"manifest.{key}": value for key, value in {**manifest, **changes}.items()}

    one = Group("a", [run("a", 1, made()), run("a", 2, made(**{"val.chunks.0.file": "elsewhere"}))])
    check_data([one])
    tokenizer = Group("b", [run("b", 1, made(tokenizer_sha256="0" * 64))])
    with pytest.raises(UserError, match="run b/0001 has the tokenizer 00000000, a/0001 has the tokenizer ffffffff: "):
        check_data([one, tokenizer])
    data = Group("c", [run("c", 1, made(**{"val.tokens": "6"}))])
    with pytest.raises(UserError, match=r"run c/0001 has the held-out data abc \(6 tokens\), a/0001 .* \(5 tokens\): "):
        check_data([one, data])
    with pytest.raises(UserError, match="run d/0001 has no record of its tokenizer"):
        check_data([one, Group("d", [run("d")])])


def test_only_what_differs_between_groups_is_a_difference() -> None:
    def made(name: str, rate: str, **more: str) -> Group:
        seeds = [{"seed_everything": seed, "name": name, "m.init_args.lr": rate, **more} for seed in ("10", "9")]
        return Group(name, [run(name, 1, params) for params in seeds])

    assert differing([made("a", "0.1"), made("b", "0.1")]) == {}
    assert differing([made("a", "0.1"), made("b", "0.2", x="1")]) == {"m.lr": ["0.1", "0.2"], "x": ["–", "1"]}
    one, two = made("a", "0.1"), Group("b", made("b", "0.1").runs[:1])
    assert differing([one, two]) == {"seed_everything": ["9, 10", "10"]}


def test_an_axis_is_interpolated_between_what_was_logged_and_never_beyond() -> None:
    logged = run(val__loss={1: 9.0, 4: 5.0, 7: 4.0, 9: 3.0, 12: 2.0}, throughput__tokens_seen={4: 50, 9: 100})
    found = curve(logged, "val/loss", "tokens")
    assert found is not None
    np.testing.assert_allclose(found.x, [12.5, 50, 80, 100])
    np.testing.assert_array_equal(found.y, [9, 5, 4, 3])
    assert curve(logged, "val/loss", "flops") is None
    assert (found.at(90), found.at(9), found.at(101)) == (3.5, None, None)


def test_a_clock_that_a_resumed_run_put_back_does_not_run_backwards() -> None:
    clock = {1: 10.0, 2: 20.0, 3: 15.0, 4: np.nan, 5: 25.0}
    found = curve(run(loss=dict.fromkeys(range(1, 6), 1.0), throughput__seconds=clock), "loss", "time")
    assert found is not None
    np.testing.assert_allclose(found.x, [10, 20, 20, 22.5, 25])


@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(0, 5000), st.floats(-10, 10)), min_size=1, max_size=30, unique_by=lambda p: p[0]
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_band_holds_its_mean_and_ends_where_all_runs_have_come(runs: list[list[tuple[int, float]]]) -> None:
    curves = [Curve(*np.array(sorted(points), dtype=float).T) for points in runs]
    found = band("a", len(curves), curves)
    if found is None:
        assert max(c.x[0] for c in curves) > reached(curves)
        return
    assert found.x[-1] == reached(curves)
    assert (found.low <= found.mean + 1e-12).all()
    assert (found.mean <= found.high + 1e-12).all()
    expected = np.mean([c.at(reached(curves)) for c in curves])
    assert found.last == found.mean[-1] == pytest.approx(expected)


def test_a_long_curve_is_gathered_to_what_a_picture_shows() -> None:
    x = np.arange(100_001.0)
    found = band("a", 1, [Curve(x, 2 * x)])
    assert found is not None
    assert len(found.x) == BINS
    np.testing.assert_allclose(found.mean, 2 * found.x)
    assert found.last == 200_000


def test_the_table_takes_equal_budgets_where_all_runs_have_been() -> None:
    short_run = run("a", 1, loss={0: 8.0, 10: 4.0}, throughput__tokens_seen={0: 0, 10: 100})
    long_run = run("b", 1, loss={0: 8.0, 20: 2.0}, throughput__tokens_seen={0: 0, 20: 400})
    table = compare([Group("a", [short_run]), Group("b", [long_run, run("b", 2, **_metrics(long_run))])], "loss")
    assert table.header == ["name", "runs", "last step", "loss", "at step 10", "at 100 tokens"]
    assert table.rows[0] == ["a", "1", "10", "4.0000", "4.0000", "4.0000"]
    assert table.rows[1] == ["b", "2", "20", "2.0000 ± 0", "5.0000 ± 0", "6.5000 ± 0"]
    assert table.notes == ["no column for equal FLOPs: a/0001 and 2 more logged no throughput/flops"]


def _metrics(one: TrackedRun) -> dict[str, Any]:
    return {key.replace("/", "__"): dict(zip(s.step, s.value, strict=True)) for key, s in one.metrics.items()}


def test_a_diverged_run_is_in_the_table_as_what_it_is() -> None:
    table = compare([Group("a", [run(loss={0: 3.0}), run("a", 2, loss={0: np.nan})])], "loss")
    assert table.rows[0][3:] == ["nan", "nan"]


def test_numbers_have_the_digits_that_tell_them_apart() -> None:
    assert [figure(v) for v in (4.23456, 0.0123456, 12345.6, 0.0)] == ["4.2346", "0.0123", "1.23e+04", "0"]
    assert [short(v) for v in (12.0, 819200.0, 2.2e18, 3e21)] == ["12", "819k", "2.2E", "3e+03E"]


def test_there_is_a_panel_for_what_was_logged_and_a_reason_for_what_was_not() -> None:
    spectral = {
        "spectral__sigma_A": {1: 2.0},
        "spectral__l0__update_norm": {1: 0.1},
        "spectral__l1__update_norm": {1: 0.3},
    }
    old, new = run("old", loss={0: 3.0, 1: 2.0}), run("new", loss={0: 3.0, 1: 2.0}, **spectral)
    groups = [Group("old", [old]), Group("new", [new])]
    panels, missing = all_panels(groups, "loss")
    titles = ["loss over steps", "‖A‖₂, largest of the layers", "‖ΔW‖₂, mean and range of 2 layers"]
    assert [panel.title for panel in panels] == titles
    assert missing[0] == "no loss over tokens: old/0001 and 1 more logged no throughput/tokens_seen"
    assert missing[-1] == "no share of time: old/0001 and 1 more logged no throughput/step_seconds"
    (layers,) = spectral_panels(groups)[1].bands
    assert (layers.low[0], layers.mean[0], layers.high[0]) == pytest.approx((0.1, 0.2, 0.3))


def test_each_method_has_the_best_of_its_learning_rates_and_its_end_is_said() -> None:
    def tried(name: str, rate: str, loss: float, **others: str) -> TrackedRun:
        params = {"model.optimizers.hidden.init_args.lr": rate, "model.optimizers.other.init_args.lr": "0.003"}
        return run(name, params={**params, "name": name, **others}, loss={9: loss})

    runs = [
        tried("a", rate, loss, seed_everything=str(seed))
        for rate, losses in {"0.1": (3.0, 3.2), "0.02": (3.4,), "0.3": (np.nan,)}.items()
        for seed, loss in enumerate(losses)
    ]
    wide = [tried("b-lr0.02-s0", "0.02", 2.0, width="2"), tried("b-lr1e-1-s0", "0.1", 2.5, width="2")]
    narrow = [tried("b", "0.1", 4.0, width="1")]
    for number, one in enumerate([*runs, *wide, *narrow]):
        one.id = str(number)
    groups = [Group("a", runs), Group("b", [*wide, *narrow]), Group("again", runs)]
    header, rows = best_rates(groups, "loss")
    assert header[:4] == ["method", "runs", "learning rates tried", "best"]
    assert rows == [
        ["a", "4", "hidden 0.02, 0.1, 0.3", "hidden 0.1", "3.1000 ± 0.1414", "between others"],
        ["b (width 2)", "2", "hidden 0.02, 0.1", "hidden 0.02", "2.0000", "the lowest hidden rate tried"],
        ["b (width 1)", "1", "hidden 0.1", "hidden 0.1", "4.0000", "the only hidden rate tried"],
    ]


def test_shares_of_time_are_of_all_that_was_measured() -> None:
    times = {"throughput__seconds": {1: 80.0}, "throughput__step_seconds": {1: 60.0}}
    shares = share_of_time([Group("a", [run(**times, throughput__validation_seconds={1: 20.0})])])
    assert isinstance(shares, Shares)
    assert list(shares.parts.values()) == [[60.0], [20.0], [20.0]]


@pytest.mark.parametrize(
    ("axis", "most", "label"),
    [
        ("tokens", 3e9, "training tokens (billions)"),
        ("tokens", 200, "training tokens"),
        ("flops", 2e18, "training FLOPs, forward and backward (10¹⁸)"),
        ("time", 3 * 3600, "time in training, without validation (hours)"),
        ("time", 30, "time in training, without validation (seconds)"),
    ],
)
def test_an_axis_says_its_unit(axis: str, most: float, label: str) -> None:
    name = dict(zip(("tokens", "flops", "time"), AXES, strict=True))[axis].replace("/", "__")
    panel = metric_panel([Group("a", [run(loss={0: 3.0, 1: 2.0}, **{name: {0: most / 2, 1: most}})])], "loss", axis)
    assert isinstance(panel, Panel)
    assert panel.xlabel == label
    assert panel.ylabel == "loss (nats per token)"
    assert 1 <= panel.bands[0].x[-1] < 1000


def test_a_steep_beginning_is_cut_off_over_steps_and_never_over_the_variants_own_x() -> None:
    steps, loss = np.arange(100.0), np.linspace(5.4, 5.0, 100)
    loss[0] = 9.0
    over_steps = Panel("t", "step", "loss", [Band("a", 1, steps, loss, loss, loss, 5.0)])
    over_rank = over_x("t", "rank", "loss", {"a": [(0.1, [9.0, 9.5]), (0.2, [5.0]), (0.4, [4.9])]})
    for panel, top in ((over_steps, 6.0), (over_rank, 9.5)):
        drawn = Figure()
        draw(panel, looks(["a"]), drawn)
        low, high = drawn.axes[0].get_ylim()
        assert (high < top) == (panel is over_steps)
        assert low < 5.0


def test_lines_are_told_apart_without_color_and_more_than_twelve_are_drawn(tmp_path: Path) -> None:
    names = [f"a rather long name of a run that ends in {index}" for index in range(13)] + [r"$\frac$"]
    own = [look for look in looks(names).values() if look["color"] in COLORS]
    assert len(own) == 12
    assert len({look["marker"] for look in own}) == len({(look["color"], str(look["linestyle"])) for look in own}) == 12
    groups = [
        Group(name, [run(name, loss={0: 3.0, 1: 2.0 + i, 2: np.nan if i == 1 else 2})]) for i, name in enumerate(names)
    ]
    panel = metric_panel(groups, "loss", "steps")
    assert isinstance(panel, Panel)
    picture([panel, Shares("Share", names, {"step": [100.0] * 14})], names, tmp_path / "x.svg")
    text = (tmp_path / "x.svg").read_text()
    assert "<!-- 2 more -->" in text
    assert "<!-- a rather long…n that ends in 0: 2.0000 (1 run) -->" in text
    assert "<!-- a rather long…n that ends in 1: nan (1 run) -->" in text
