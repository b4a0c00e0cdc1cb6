"""A job is one process of `lrtrain fit`, trained once, resumed when interrupted, and refused under another's name."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import stand_in_fit
from lrtrain.runtime.errors import UserError
from lrtrain.studies.jobs import Job, Repeated, best_over_seeds, launch, run_job, search_learning_rate, train_best
from lrtrain.studies.jobs.job_record import record_job, recorded_outcome
from lrtrain.studies.jobs.rate_grid import losses_of, train_rates
from stand_in_fit import RATE

STAND_IN = (sys.executable, stand_in_fit.__file__)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "COMMAND", STAND_IN)


def job(runs: Path, rate: float = 0.01, name: str = "toy", **more: object) -> Job:
    runs.mkdir(exist_ok=True)
    return Job(name, (), {RATE: rate, **more}, runs)


def starts(runs: Path) -> list[str]:
    return (runs / "starts").read_text().splitlines()


def test_a_finished_job_is_not_repeated_and_leaves_no_checkpoint(tmp_path: Path) -> None:
    first, again = (run_job(job(tmp_path)) for _ in range(2))
    assert (first.status, first.metric, first.reason) == ("finished", 0.0, "")
    assert first.run_dir == tmp_path / "toy/0001"
    assert (again.status, again.metric, again.run_dir) == (first.status, first.metric, first.run_dir)
    assert starts(tmp_path) == ["toy fresh 1"]
    assert not list(tmp_path.glob("toy/*/checkpoints"))


def test_checkpoints_are_kept_on_demand(tmp_path: Path) -> None:
    outcome = run_job(job(tmp_path), keep_checkpoints=True)
    assert outcome.run_dir is not None
    assert list((outcome.run_dir / "checkpoints").iterdir())


def test_the_name_of_another_job_is_refused_with_the_setting_that_differs(tmp_path: Path) -> None:
    run_job(job(tmp_path))
    with pytest.raises(UserError, match=rf"toy holds a run with other settings \({RATE}: 0.01 there, 0.02 here\)"):
        run_job(job(tmp_path, 0.02))
    with pytest.raises(UserError, match=r"trainer.max_steps: not set there, 5 here"):
        run_job(job(tmp_path, **{"trainer.max_steps": 5}))


def test_other_content_of_a_file_is_another_job_and_a_comment_is_not(tmp_path: Path) -> None:
    file = tmp_path / "base.yaml"
    mine = Job("toy", (file,), {RATE: 0.01}, tmp_path)
    file.write_text("trainer: {max_steps: 3}\n")
    run_job(mine)
    file.write_text("trainer: {max_steps: 3}  # optimizer steps\n")
    assert run_job(mine).status == "finished"
    file.write_text("trainer: {max_steps: 4}\n")
    with pytest.raises(UserError, match=r"config 1.trainer.max_steps: 3 there, 4 here"):
        run_job(mine)


def test_a_diverged_job_is_infinitely_bad_and_not_repeated(tmp_path: Path) -> None:
    outcomes = [run_job(job(tmp_path, 0.7)) for _ in range(2)]
    assert [(outcome.status, outcome.metric) for outcome in outcomes] == [("diverged", math.inf)] * 2
    assert all(outcome.reason.startswith("stopped at step 7: non-finite") for outcome in outcomes)
    assert len(starts(tmp_path)) == 1


def test_a_loss_that_is_no_number_has_diverged(tmp_path: Path) -> None:
    record_job(job(tmp_path))
    (tmp_path / "toy/0001").mkdir()
    stand_in_fit.record(tmp_path / "toy/0001", step=1, metrics={"val/loss": "NaN"})
    stand_in_fit.record(tmp_path / "toy/0001", status="FINISHED")
    outcome = run_job(job(tmp_path))
    assert (outcome.status, outcome.metric, outcome.reason) == ("diverged", math.inf, "val/loss is nan")


def test_a_crashed_job_says_why_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    outcomes = [run_job(job(tmp_path, 1e-5)) for _ in range(2)]
    assert [(outcome.status, outcome.metric, outcome.refused) for outcome in outcomes] == [("failed", None, False)] * 2
    assert outcomes[0].reason == f"RuntimeError: the stand-in's crash (see {tmp_path}/toy/fit.log)"
    assert starts(tmp_path) == ["toy fresh 1", "toy resumed 1"]


def test_a_refused_job_tells_the_one_line(tmp_path: Path) -> None:
    outcome = run_job(job(tmp_path, -1))
    assert (outcome.status, outcome.refused) == ("failed", True)
    assert outcome.reason.startswith("model.optimizers.hidden: lr must be positive (see ")


def test_a_metric_that_is_not_recorded_is_refused_with_near_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"toy/0001 has no metric 'val/los'; there are val/loss"):
        run_job(job(tmp_path), metric="val/los")


def test_a_run_that_no_job_made_is_refused(tmp_path: Path) -> None:
    run_job(job(tmp_path))
    (tmp_path / "toy/job.json").unlink()
    with pytest.raises(UserError, match=r"toy/0001 is no run of a job: give another name, or remove .*/toy"):
        recorded_outcome(job(tmp_path), "val/loss")


def repeated(runs: Path, name: str, start: float, seeds: int = 1, search: bool = False) -> Repeated:
    def one(lr: float, seed: int) -> Job:
        return job(runs, lr, f"{name}-{lr:g}-s{seed}", seed_everything=seed)

    return Repeated(one, start, range(seeds), search)


def test_jobs_are_trained_together_and_told_in_order(tmp_path: Path) -> None:
    wanted = [repeated(tmp_path, "toy", rate) for rate in (0.1, 0.7, 0.01)]
    told: list[str] = []
    found = train_best(wanted, 2, each=lambda job, outcome: told.append(f"{job.name} {outcome.status}"))
    assert [best.results[0].metric for best in found] == [1.0, math.inf, 0.0]
    assert sorted(told) == ["toy-0.01-s0 finished", "toy-0.1-s0 finished", "toy-0.7-s0 diverged"]


def test_each_is_searched_on_the_first_seed_and_repeated_at_its_best_rate(tmp_path: Path) -> None:
    ended: list[int] = []
    wanted = [repeated(tmp_path, "one", 0.02, 3, search=True), repeated(tmp_path, "two", 0.005, 2, search=True)]
    found = train_best(wanted, 3, done=lambda index, best: ended.append(index))
    assert [best.lr for best in found] == [0.01, 0.01]
    assert [len(best.results) for best in found] == [3, 2]
    assert [sorted(best.rates) for best in found] == [[0.005, 0.01, 0.02], [0.0025, 0.005, 0.01, 0.02]]
    assert sorted(ended) == [0, 1]
    before = starts(tmp_path)
    assert len(before) == len(set(before)) == 3 + 2 + 4 + 1
    assert [best.rates for best in train_best(wanted)] == [best.rates for best in found]
    assert starts(tmp_path) == before


def test_a_refused_first_rate_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^toy--1-s0: model.optimizers.hidden: lr must be positive"):
        train_best([repeated(tmp_path, "toy", -1)])


def test_a_search_that_diverges_begins_again_lower_and_one_that_fails_does_not() -> None:
    def law(lr: float, seed: int) -> float:
        return math.inf if lr > 0.1 else math.log2(lr / 0.0625) ** 2 + seed

    best = best_over_seeds(law, float, 0.5, [0, 1])
    assert (best.lr, best.results) == (0.0625, [0.0, 1.0])
    assert best.rates == {0.5: math.inf, 0.125: math.inf, 0.03125: 1.0, 0.015625: 4.0, 0.0625: 0.0}
    lost = best_over_seeds(lambda lr, seed: math.nan, float, 0.5, [0, 1])
    assert lost.rates == {0.5: math.inf}
    assert len(lost.results) == 1
    assert len(best_over_seeds(lambda lr, seed: math.inf, float, 0.5, [0, 1], search=False).results) == 2


def test_a_search_over_given_factors_tries_just_these_on_a_seed_that_is_not_reported() -> None:
    seen: list[tuple[float, int]] = []

    def law(lr: float, seed: int) -> float:
        seen.append((lr, seed))
        return math.inf if lr > 0.1 else math.log2(lr / 0.05) ** 2 + seed

    best = best_over_seeds(law, float, 0.1, [0, 1], factors=[1, 0.5, 2])
    assert (best.lr, best.results) == (0.05, [0.0, 1.0])
    assert best.rates == {0.05: 1000.0, 0.1: 1001.0, 0.2: math.inf}
    assert seen == [(0.05, 1000), (0.1, 1000), (0.2, 1000), (0.05, 0), (0.05, 1)]
    lost = best_over_seeds(lambda lr, seed: math.nan, float, 0.5, [0, 1], factors=[1, 2])
    assert len(lost.results) == 1
    assert best_over_seeds(law, float, 0.1, [0], search=False, factors=[1, 2]).rates == {0.1: 1.0}


def test_a_grid_goes_on_where_the_best_is_at_an_end_and_over_all_seeds(tmp_path: Path) -> None:
    wanted = [replace(repeated(tmp_path, "toy", 0.05, 2, search=True), factors=[1, 2])]
    (found,) = train_rates(wanted, 2)
    assert list(found) == [0.05, 0.1, 0.025, 0.0125, 0.00625]
    assert losses_of(found) == {lr: pytest.approx((math.log10(lr) + 2) ** 2 + 0.005) for lr in found}
    assert [len(outcomes) for outcomes in found.values()] == [2] * 5
    before = starts(tmp_path)
    assert len(before) == 10
    assert [losses_of(again) for again in train_rates(wanted)] == [losses_of(found)]
    assert starts(tmp_path) == before
    (alone,) = train_rates([repeated(tmp_path, "toy", 0.05)])
    assert list(alone) == [0.05]
    with pytest.raises(UserError, match=r"^toy--1-s0: model.optimizers.hidden: lr must be positive"):
        train_rates([repeated(tmp_path, "toy", -1)])


def test_tags_are_added_to_whatever_logger_is_named(tmp_path: Path) -> None:
    tagged = Job("toy", (), {}, tmp_path, tags={"a": "b"})
    made = launch.tracked(None, tagged)
    arguments = {"group": "toy", "root": str(tmp_path), "run_name": "toy", "tags": {"a": "b"}}
    assert made == [{"class_path": "lrtrain.tracking.logger.MLflowLogger", "init_args": arguments}]
    other = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "x"}}
    own = {"class_path": "lrtrain.tracking.logger.MLflowLogger", "init_args": {"tags": {"c": "d"}, "run_name": "n"}}
    kept, mine = launch.tracked([other, own], tagged)
    assert kept == other
    assert mine["init_args"] == {"tags": {"c": "d", "a": "b"}, "run_name": "n"}  # type: ignore[index]
    assert launch.tracked(other, tagged) == [other, *made]
    (alone,) = launch.tracked(False, tagged)
    assert alone["init_args"] == {**arguments, "send": False}  # type: ignore[index]
    (flag,) = [flag for flag in launch.arguments(tagged) if flag.startswith("--trainer.logger=")]
    assert json.loads(flag.partition("=")[2]) == made


PROGRAM = f"""
import signal, sys
from pathlib import Path
from lrtrain.studies.jobs import Job, Repeated, launch, train_best
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
launch.COMMAND = {STAND_IN!r}
runs = Path(sys.argv[1])
toys = [(lambda lr, seed, n=n: Job(f"toy-{{n}}", (), {{{RATE!r}: lr}}, runs)) for n in range(3)]
train_best([Repeated(toy, 0.01, [0], search=False) for toy in toys], 2)
"""


@pytest.mark.parametrize(
    ("how", "code"),
    [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, -signal.SIGINT), (signal.SIGKILL, -9)],
)
def test_a_signal_ends_the_processes_too_and_they_save(how: signal.Signals, code: int, tmp_path: Path) -> None:
    if how == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("needs Linux")
    environment = {**os.environ, "STAND_IN_SECONDS": "200"}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: len(list(tmp_path.glob("*/*/checkpoints/step-00000000.ckpt"))) == 2)
        process.send_signal(how)
        assert process.wait(60) == code
        until(lambda: len(list(tmp_path.glob("*/*/checkpoints/step-00000001.ckpt"))) == 2)
    finally:
        process.kill()
    assert len(starts(tmp_path)) == 2


def until(condition: object) -> None:
    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.mark.parametrize(("best", "runs"), [(0.02, 3), (0.08, 5), (0.0025, 5)])
def test_a_search_goes_on_until_the_best_value_is_not_at_an_end(best: float, runs: int) -> None:
    found = search_learning_rate(0.02, lambda lr: abs(math.log2(lr / best)))
    assert len(found) == runs
    assert min(found, key=lambda lr: found[lr]) == pytest.approx(best)
    assert min(found) < best < max(found)


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_search_where_every_run_diverges_ends(loss: float) -> None:
    assert search_learning_rate(0.02, lambda lr: loss) == {0.02: math.inf}


def test_a_search_whose_loss_hardly_differs_ends_and_says_so() -> None:
    best = best_over_seeds(lambda lr, seed: 4.68 + 1e-9 * lr, float, 0.02, [0])
    assert sorted(best.rates) == pytest.approx([0.02 * 2**power for power in range(-8, 1)])
    assert best.at_end == "the best lr, 7.8125e-05, is the lowest of the 9 tried: its search needs others"
    assert best_over_seeds(lambda lr, seed: -lr, float, 1.0, [0]).at_end.startswith("the best lr, 256, is the highest")
    assert not best_over_seeds(lambda lr, seed: abs(math.log2(lr)), float, 1.0, [0]).at_end
    assert not best_over_seeds(lambda lr, seed: lr, float, 1.0, [0], search=False).at_end
    assert not best_over_seeds(lambda lr, seed: math.inf, float, 1.0, [0], factors=[1, 2]).at_end


def test_a_search_goes_away_from_what_diverges() -> None:
    found = search_learning_rate(1.0, lambda rate: math.nan if rate > 1 else -rate)
    assert found == {1.0: -1.0, 0.5: -0.5, 2.0: math.inf}
    with pytest.raises(ValueError, match="positive"):
        search_learning_rate(0.0, lambda value: value)
