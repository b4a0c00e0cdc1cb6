"""An experiment trains each variant once, at its best learning rate, and ends with table, figure and verdict."""

import json
import sys
from pathlib import Path

import pytest
import yaml

import pretend_fit
import toy
from commandline import refusal
from experiment_file import write
from lrtrain.cli.main import main
from lrtrain.studies.jobs import launch

STAND_IN = Path(pretend_fit.__file__)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts the stand-in in the place of `lrtrain fit`; the names of the runs that it was started for."""
    monkeypatch.setattr(launch, "COMMAND", (sys.executable, "-I", str(STAND_IN)))
    monkeypatch.setenv("PRETEND_TOKENS", "128")
    monkeypatch.setenv("PRETEND_LOG", str(tmp_path / "started"))
    monkeypatch.delenv("PRETEND_FIT", raising=False)
    return tmp_path / "started"


def test_an_experiment_ends_with_table_figure_numbers_and_verdict(
    log: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*write(tmp_path, shards), "--jobs", "2"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "verdict: reproduced: good 13." in out
    assert "no spectral/*/sigma_A: no run logged it" in out
    started = log.read_text().splitlines()
    assert len(started) == len(set(started)) == 3 + 4 + 2  # from above, from below, and the second seeds
    (results,) = tmp_path.glob("runs/experiments/widths-tiny/results.json")
    found = json.loads(results.read_text())
    good, bad = found["variants"]
    assert found["verdict"].startswith("reproduced: good 13.")
    assert good["lr"] == bad["lr"] == 0.04
    assert [seed["status"] for seed in good["seeds"]] == ["finished"] * 2
    assert set(good["searched"]) == {"0.02", "0.04", "0.08"}
    assert good["seeds"][0]["last val/loss"] < bad["seeds"][0]["last val/loss"]
    assert (results.parent / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_an_experiment_of_ones_own_is_a_file_anywhere_with_nothing_claimed(
    log: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path, shards)
    content = yaml.safe_load((tmp_path / "experiments/widths.yaml").read_text())
    mine = {**content["scales"]["tiny"], "seeds": 3, "search": False}
    mine["variants"] = {
        "good": {"label": "narrow", "settings": {"model.decoder.width": 56}, "lr": 0.04},
        "bad": {"settings": {"model.decoder.width": 128}, "lr": 0.04},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert main(["experiment", "../mine.yaml"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("mine\nvariant ")
    assert "paper" not in out
    assert "verdict: narrow 13." in out
    assert " < bad 13." in out
    assert len(log.read_text().splitlines()) == 6
    found = json.loads(Path("runs/experiments/mine/results.json").read_text())
    assert found["p"]["narrow"]["bad"] < 0.05
    assert Path("runs/experiments/mine/figure.png").exists()
    page = Path("runs/experiments/mine/page.html").read_text()
    assert "val/loss of bad, narrow" in page
    assert "6 finished runs, 2 names" in page
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**mine, "checks": [{"order": ["bad", "good"]}]}))
    assert main(["experiment", "../mine.yaml"]) == 0
    assert "verdict: does not hold: bad 13." in capsys.readouterr().out
    assert len(log.read_text().splitlines()) == 6


def test_what_has_finished_is_not_trained_again_and_more_seeds_are_added(
    log: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = write(tmp_path, shards)
    assert main([*argv, "--seeds", "1"]) == 0
    assert "verdict: not comparable: one seed has no spread" in capsys.readouterr().out
    before = len(log.read_text().splitlines())
    assert main([*argv, "--seeds", "2"]) == 0
    assert len(log.read_text().splitlines()) == before + 2
    assert "verdict: reproduced" in capsys.readouterr().out
    assert main(write(tmp_path, shards, checks=[{"order": ["bad", "good"]}])) == 0
    assert len(log.read_text().splitlines()) == before + 2
    assert "verdict: not reproduced: bad" in capsys.readouterr().out


def test_an_experiment_takes_what_the_records_of_another_machine_hold(
    log: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = ["--records", str(tmp_path / "records")]
    assert main([*write(tmp_path, shards), *records]) == 0
    here = capsys.readouterr().out.partition("\n\n")[2]
    before = log.read_text().splitlines()
    assert main([*write(tmp_path, shards), *records, "--runs", str(tmp_path / "elsewhere")]) == 0
    lines, _, there = capsys.readouterr().out.partition("\n\n")
    assert lines.count("(trained elsewhere: ") == len(before) == 9
    assert there.replace("elsewhere", "runs") == here
    assert log.read_text().splitlines() == before
    (tmp_path / "records/seed.jsonl.xz").touch()  # of no run here
    assert main([*write(tmp_path, shards), *records, "--runs", str(tmp_path / "third"), "--seeds", "3"]) == 0
    assert len(log.read_text().splitlines()) == len(before) + 2


@pytest.mark.parametrize(
    ("failure", "told", "verdict"),
    [
        ("diverge:lr0.04-s1", "diverged: stopped at step 7: non-finite gradients", "not reproduced"),
        ("crash:lr0.04-s1", "failed: RuntimeError: out of memory", "not comparable"),
        ("diverge:lr0.02-", "no loss at lr 0.02 in the search", "reproduced"),
        ("mistake:lr0.02-", "no loss at lr 0.02 in the search", "reproduced"),
    ],
)
def test_a_run_that_ends_badly_is_shown_and_ends_nothing(
    failure: str,
    told: str,
    verdict: str,
    log: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PRETEND_FIT", failure)
    variants = {
        "good": {"settings": {"model.decoder.width": 56}, "tiny": {"lr": 0.08}},
        "bad": {"settings": {"model.decoder.width": 128}, "tiny": {"lr": 0.04}},
    }
    assert main(write(tmp_path, shards, variants=variants)) == 0
    table, _, rest = capsys.readouterr().out.partition("verdict: ")
    assert told in table.partition("\n\n")[2]
    assert rest.startswith(f"{verdict}: ")


def test_a_search_whose_first_rate_diverges_begins_again_lower(
    log: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRETEND_FIT", "diverge:lr0.16-")
    variants = {"good": {"settings": {"model.decoder.width": 56}, "tiny": {"lr": 0.16}}}
    assert main(write(tmp_path, shards, variants=variants, checks=[], figure=[])) == 0
    found = json.loads((tmp_path / "runs/experiments/widths-tiny/results.json").read_text())
    assert found["variants"][0]["searched"]["0.16"] is None
    assert found["variants"][0]["lr"] == 0.04


def test_a_search_over_factors_tells_its_trials_and_a_best_rate_at_an_end(
    log: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow = {"model.decoder.width": 56}
    variants = {
        "good": {"settings": narrow, "tiny": {"lr": 0.04}},
        "slow": {"settings": {**narrow, "model.decoder.ffn_width": 64}, "tiny": {"lr": 0.01}},
    }
    argv = write(tmp_path, shards, variants=variants, checks=[], figure=[])
    content = yaml.safe_load(Path(argv[1]).read_text())
    content["scales"]["tiny"]["factors"] = [0.5, 1, 2]
    Path(argv[1]).write_text(yaml.safe_dump(content, sort_keys=False))
    assert main(argv) == 0
    out = capsys.readouterr().out
    (heads, good, slow) = out.partition("\n\n")[2].splitlines()[:3]
    assert heads.split() == ["variant", "lr", "of", "rates", "runs", "steps", "val/loss"]
    assert good.split()[:4] == ["good", "0.04", "3", "2"]
    assert slow.split()[:4] == ["slow", "0.02", "3", "2"]
    assert "slow: the best lr, 0.02, is the highest of the 3 tried: its search needs others" in out
    assert "good: the best lr" not in out
    started = [name.partition("-lr")[2] for name in log.read_text().splitlines()]
    searched = [f"{lr}-s1000" for lr in ("0.02", "0.04", "0.08", "0.005", "0.01", "0.02")]
    assert sorted(started) == sorted([*searched, "0.04-s0", "0.04-s1", "0.02-s0", "0.02-s1"])


def test_one_rate_alone_is_tried_where_none_is_searched(log: Path, shards: Path, tmp_path: Path) -> None:
    variants = {"good": {"settings": {"model.decoder.width": 56}, "tiny": {"lr": 0.16, "search": False}}}
    assert main(write(tmp_path, shards, variants=variants, checks=[], figure=[])) == 0
    assert [name.partition("-lr")[2] for name in log.read_text().splitlines()] == ["0.16-s0", "0.16-s1"]


def test_a_mistake_is_refused_before_or_where_fit_refuses_it(
    log: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = {"good": {"settings": {"model.decoder.depht": 2}, "tiny": {"lr": 0.1}}}
    assert "depht" in refusal(write(tmp_path, shards, variants=variants, checks=[]), capsys)
    variants = {"good": {"settings": {"trainer.max_steps": 5}, "tiny": {"lr": 0.1}}}
    line = refusal(write(tmp_path, shards, variants=variants, checks=[]), capsys)
    assert line.startswith("widths: good: 5 steps with a validation every 2: the last step's loss would be missing")
    one = {"tiny": {"lr": 0.1}}
    same = refusal(write(tmp_path, shards, variants={"one": one, "two": one}, checks=[]), capsys)
    assert same == "widths: the variants one and two are the same: leave one out"
    assert not log.exists()
    monkeypatch.setenv("PRETEND_FIT", "mistake:tiny")
    line = refusal(write(tmp_path, shards), capsys)
    assert line.startswith("tiny-quickstart-")
    assert ": --model.decoder.vocab_size: expected int, got many (see " in line


def test_one_of_several_experiments_that_is_refused_ends_no_other(
    log: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = write(tmp_path, shards)
    file = tmp_path / "experiments" / "widths.yaml"
    broken = file.read_text().replace("model.decoder.heads: 2", "model.decoder.heads: 3")
    file.with_name("a_broken.yaml").write_text(broken)
    argv.insert(1, str(file.with_name("a_broken.yaml")))
    line = refusal(argv, capsys)
    assert line == "1 of 2 experiments ended with an error: a_broken"
    assert (tmp_path / "runs/experiments/widths-tiny/results.json").exists()
