"""`lrtrain compare` over runs that `lrtrain fit` tracked."""

import json
import statistics
from pathlib import Path

import pytest

import toy
from commandline import arguments, refusal
from lrtrain.cli import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs of the name `a`, and beside them a longer one that was stopped; one, stopped, of `b`."""
    folder = tmp_path_factory.mktemp("compare")
    fit = ["fit", *arguments(toy.shards(folder), folder / "runs", "--trainer.logger=true")]
    stop = ["--trainer.callbacks=commandline.StopAt", "--trainer.callbacks.batch=2", "--trainer.max_steps=9"]
    for seed in (0, 1):
        assert main([*fit, "--name=a", f"--seed_everything={seed}"]) == 0
    for name in ("a", "b"):
        with pytest.raises(SystemExit):
            main([*fit, f"--name={name}", *stop])
    return folder / "runs"


def losses(runs: Path) -> list[float]:
    """The last held-out loss of each finished run, from the runs' own records."""
    found = []
    for run in ("a/0001", "a/0002"):
        records = [json.loads(line) for line in (runs / run / "metrics.jsonl").read_text().splitlines()]
        found.append([r["metrics"]["val/loss"] for r in records if "val/loss" in r.get("metrics", {})][-1])
    return found


def test_the_table_has_mean_and_standard_deviation_of_the_finished_runs(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "a", "a=the same", "--runs", str(runs)]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    values = losses(runs)
    assert values[0] != values[1]
    assert header.split() == ["name", "runs", "step", "val/loss", "(mean", "±", "std)"]
    figures = ["2", "1", f"{statistics.mean(values):.4f}", "±", f"{statistics.stdev(values):.4f}"]
    assert [row.split()[-5:] for row in rows] == [figures, figures]
    assert [row.split("  ")[0] for row in rows] == ["a", "the same"]


def test_the_picture_is_written_with_the_labels(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    png, svg = tmp_path / "new folder/curves.png", tmp_path / "curves.svg"
    for file in (png, svg):
        assert main(["compare", "a=Spectron", "--metric", "train/loss", "--runs", str(runs), "--out", str(file)]) == 0
        assert f"wrote {file}" in capsys.readouterr().out
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in svg.read_text()
    assert "<!-- Spectron: " in svg.read_text()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["aa"], "no runs of the name 'aa' are tracked; there are a"),
        (["a", "--metric", "val/los"], "run a/0002 of 'a' has no metric 'val/los'; there are val/loss"),
        (["b"], "no run of the name 'b' has finished"),
        (["a", "--out", "curves.doc"], "--out curves.doc: name a file that ends in .png or .svg"),
        (["a", "--out", "/dev/null/curves.png"], "--out /dev/null/curves.png: "),
        (["a", "--tracking-uri", "http://127.0.0.1:9"], "MLflow at http://127.0.0.1:9 does not answer"),
        (["a", "--tracking-uri", "carrier://pigeon"], "tracking_uri 'carrier://pigeon' has the unknown scheme"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    flags: list[str], line: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(["compare", *flags, "--runs", str(runs)], capsys).startswith(line)


def test_a_folder_without_tracking_is_named_and_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(["compare", "a", "--runs", str(tmp_path)], capsys)
    assert line.startswith(f"nothing is tracked in {tmp_path}/mlflow.db")
    assert not list(tmp_path.iterdir())
