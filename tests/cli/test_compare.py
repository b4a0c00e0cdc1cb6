"""`lrtrain compare` over runs that `lrtrain fit` tracked."""

import json
import re
import statistics
from pathlib import Path

import pytest

import toy
from commandline import arguments, refusal
from lrtrain.cli.main import main
from lrtrain.tracking.recorded import recorded
from tracked import make_logger


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
    found = [recorded(runs / run) for run in ("a/0001", "a/0002")]
    return [run.last["val/loss"] for run in found if run is not None]


def test_the_table_has_mean_and_standard_deviation_of_the_finished_runs(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "a", "a=the same", "--runs", str(runs)]) == 0
    header, *rows = [re.split(r" {2,}", line) for line in capsys.readouterr().out.splitlines()]
    values = losses(runs)
    assert values[0] != values[1]
    assert header[:6] == ["name", "runs", "last step", "val/loss", "at step 2", "at 256 tokens"]
    assert header[6].endswith(" FLOPs")
    figure = f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.3g}"
    assert rows == [[name, "2", "2", *[figure] * 4] for name in ("a", "the same")]


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
        ([], "the following arguments are required: names, --tag or --study"),
        (["a", "--tag", "team"], "--tag team: give it as KEY=VALUE"),
        (["a", "--tag", "team=x"], "no run has the tag 'team' among the runs of the name 'a'; there are "),
        (["--study", "rates"], "no study 'rates' is tracked"),
        (["aa"], "no runs of the name 'aa' are tracked; there are a"),
        (["a", "--metric", "val/los"], "run a/0001 has no metric 'val/los'; there are val/loss"),
        (["b"], "no run of the name 'b' has finished"),
        (["a", "--out", "curves.doc"], "--out curves.doc: name a file that ends in .png or .svg"),
        (["a", "--html", "page.pdf"], "--html page.pdf: name a file that ends in .html or .htm"),
        (["a", "--html", "/dev/null/page.html"], "cannot write /dev/null/page.html: "),
        (["a", "--x", "tonkens"], "argument --x: invalid choice: 'tonkens'"),
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


def test_the_page_has_every_figure_of_a_real_run_and_needs_nothing_else(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, sheet = tmp_path / "page.html", tmp_path / "all.svg"
    flags = ["--x", "all", "--out", str(sheet), "--html", str(page)]
    assert main(["compare", "a=A & B", "--runs", str(runs), *flags]) == 0
    text = page.read_text()
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    curves, *_ = json.loads(data)
    assert list(curves["panels"]["val/loss"]) == ["steps", "tokens", "FLOPs"]
    assert {"train/loss", "throughput/tokens_per_second"} < curves["panels"].keys()
    # What has one point a run is no curve to begin with.
    points = {name: len(axes["steps"]["bands"][0]["x"]) for name, axes in curves["panels"].items()}
    assert points["val/loss"] == 1 < next(iter(points.values()))
    (band,) = curves["panels"]["val/loss"]["steps"]["bands"]
    assert (band["label"], band["runs"]) == ("A & B", 2)
    assert (band["low"][-1], band["high"][-1]) == pytest.approx(sorted(losses(runs)), abs=1e-4)
    assert "only hidden rate tried" in text
    # One point of each run, at different times: there is nothing to average, and the page says so.
    assert "no val/loss over time: the runs of A &amp; B have no stretch of it in common" in text
    assert "<figcaption>Share of time</figcaption>" in text
    assert "<!-- Share of time -->" in sheet.read_text()
    assert "A &amp; B" in text
    assert "A & B<" not in text
    assert "a/0001" in text
    assert f"<pre>lrtrain compare &#x27;a=A &amp; B&#x27; --runs {runs}" in text
    assert re.findall(r'(?:src|href)="(?!#)[^"]*"|@import', text) == []
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    inside = re.findall(r'href="#([^"]*)"', text)
    assert inside
    assert set(inside) <= set(ids)


def test_other_data_is_refused_and_compared_only_when_asked_to(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, sha256, loss in (("a", "f" * 64, 3.0), ("b", "0" * 64, 2.0)):
        logger = make_logger(root, f"{name}/0001", tags={"lrtrain.study": "rates"})
        logger.log_manifest({"tokenizer_sha256": sha256})
        logger.log_metrics({"val/loss": loss}, 0)
        logger.finalize("success")
    compare = ["compare", "--study", "rates", "--runs", str(root)]
    difference = "run a/0001 has the tokenizer ffffffff, b/0001 has the tokenizer 00000000"
    assert refusal(compare, capsys) == f"{difference}: their losses do not compare; leave one out, or give --anyway"
    assert main([*compare, "--anyway"]) == 0
    _, lowest, highest, warning, *notes = capsys.readouterr().out.splitlines()
    assert (lowest.split()[0], highest.split()[0]) == ("b", "a")
    assert warning == f"their losses do not compare: {difference}"
    assert len(notes) == 2
    line = "--x time: no val/loss over time: a/0001 logged no throughput/seconds"
    assert refusal(["compare", "a", "--runs", str(root), "--x", "time", "--out", str(root / "x.png")], capsys) == line
