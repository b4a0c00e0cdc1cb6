"""`lrtrain report` and the page at the end of a fit, over runs of `lrtrain fit`."""

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import toy
from commandline import arguments, refusal
from lrtrain.cli.main import main
from lrtrain.tracking.recorded import recorded, recorded_texts
from tracked import make_database, mlflow_run

TELEMETRY = [
    "--trainer.callbacks=lrtrain.training.callbacks.spectral_telemetry.SpectralTelemetry",
    "--trainer.callbacks.every_n_steps=1",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, and `runs/one/0001`: four steps, validated after two and four, tracked."""
    folder = tmp_path_factory.mktemp("report")
    shards = toy.shards(folder)
    (folder / "runs").mkdir()
    make_database(folder / "runs")
    flags = [*TELEMETRY, "--name=one", "--trainer.logger=true", "--checkpoints.every_n_steps=2"]
    assert main(["fit", *arguments(shards, folder / "runs", *flags, steps=4)]) == 0
    return folder


@pytest.fixture(scope="module")
def run_dir(folder: Path) -> Path:
    return folder / "runs/one/0001"


def sections(page: str) -> dict[str, str]:
    """Title of a section -> its HTML."""
    parts = re.split(r'<h2 id="[^"]*">(.*?)</h2>', page)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def figures(page: str) -> list[dict[str, Any]]:
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    found: list[dict[str, Any]] = json.loads(data)
    return found


def test_a_fit_ends_with_the_page_of_its_run_which_the_tracker_has_too(run_dir: Path) -> None:
    page = (run_dir / "report.html").read_text()
    found = sections(page)
    assert list(found) == [
        "Course",
        "Spectra of the layers",
        "Held-out loss by source and position",
        "Samples of text",
        "Configuration",
        "Data",
        "Machine, versions, code",
        "Checkpoints",
    ]
    assert "<b>finished</b><span>status" in page
    assert "No gradient norm" not in page
    assert "step-00000004.ckpt" in found["Checkpoints"]
    assert "step-00000002.ckpt" in found["Checkpoints"]
    assert "‖ΔW‖₂ / learning rate" in found["Spectra of the layers"]
    client, tracked = mlflow_run(run_dir)
    copied = client.download_artifacts(tracked.info.run_id, "report.html")
    assert Path(copied).read_text() == page
    names = {one.path for one in client.list_artifacts(tracked.info.run_id)}
    assert {"report.html", "samples", "held_out", "base_recipe.json"} <= names


def test_a_run_in_a_store_is_reported_from_its_copy(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "store/one/0001"
    shutil.copytree(run_dir, copy, ignore=shutil.ignore_patterns("report.html", "*.aside"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert main(["report", "--out", "here.html", str(run_dir)]) == 0
    capsys.readouterr()
    assert main(["report", f"file://{copy}"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"run file://{copy}", "wrote report.html"]
    here, there = (sections((tmp_path / name).read_text()) for name in ("here.html", "report.html"))
    assert [title for title in here if here[title] != there[title]] == ["Checkpoints"]
    assert main(["report", f"file://{tmp_path}/store", "--out", "again.html"]) == 0  # its newest run
    assert "no checkpoint under" in refusal(["report", f"file://{tmp_path}/nothing"], capsys)


def test_the_losses_by_position_are_those_of_the_validation(run_dir: Path) -> None:
    run = recorded(run_dir)
    assert run is not None
    texts = recorded_texts(run_dir)["held_out/by_position.json"]
    assert [step for step, _ in texts] == [2, 4]
    for (step, text), loss in zip(texts, run.series("val/loss").value, strict=True):
        found = json.loads(text)
        (rows,) = found["sources"].values()
        assert found["step"] == step
        assert rows[0] | {"loss": 0} == {"first": 0, "last": 0, "loss": 0, "tokens": 2 * 4}
        assert rows[-1]["last"] == toy.BLOCK - 1
        assert all(one["last"] + 1 == other["first"] for one, other in pairwise(rows))
        total = sum(row["tokens"] for row in rows)
        assert total == 2 * 4 * toy.BLOCK
        assert sum(row["tokens"] * row["loss"] for row in rows) / total == pytest.approx(loss, abs=1e-5)


def test_the_page_draws_what_was_recorded(run_dir: Path) -> None:
    drawn = figures((run_dir / "report.html").read_text())
    run = recorded(run_dir)
    assert run is not None
    loss = drawn[0]["panels"]["loss (nats per token)"]
    assert set(loss) == {"steps", "tokens", "FLOPs", "time"}
    train, held_out = loss["steps"]["bands"]
    assert train["mean"] == pytest.approx(run.series("train/loss").value, abs=1e-4)
    assert (held_out["label"], held_out["x"]) == ("val/loss", [2.0, 4.0])
    heat = [one for one in drawn if one["kind"] == "heatmap"]
    assert heat[0]["steps"] == [1, 2, 3, 4]
    layers = [row["label"] for row in heat[0]["rows"]]
    assert layers == ["blocks.0.attention.output", "blocks.1.attention.output"]
    expected = run.series("spectral/decoder.blocks.0.attention.output/update_over_lr").value
    assert heat[0]["rows"][0]["values"] == pytest.approx(expected, rel=1e-4)


def test_samples_are_of_several_steps_beside_how_the_held_out_text_goes_on(run_dir: Path) -> None:
    texts = recorded_texts(run_dir)
    assert [name for name in texts if name.startswith("samples/")] == [
        "samples/step-00000002.json",
        "samples/step-00000004.json",
    ]
    first, last = (json.loads(texts[f"samples/step-0000000{step}.json"][0][1])["samples"] for step in (2, 4))
    assert [one["prompt"] for one in first] == [one["prompt"] for one in last]
    assert all(one["prompt"] and one["continuation"] and one["held_out"] for one in (*first, *last))
    page = sections((run_dir / "report.html").read_text())["Samples of text"]
    assert "at steps 2, 4 by the weights" in page
    assert page.count("how the held-out text goes on") == 2


def test_what_differs_from_the_recipe_is_what_was_set(run_dir: Path) -> None:
    page = sections((run_dir / "report.html").read_text())["Configuration"]
    assert "the shipped recipe <code>quickstart</code>" in page
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", page)
    found = {key: rest for key, *rest in rows}
    assert found["trainer.max_steps"] == ["200", "4", "--trainer.max_steps"]
    assert found["trainer.accelerator"] == ["default", "cpu", "--trainer.accelerator"]
    assert found["data.prepare"][1:] == ["null", "--data.prepare"]
    assert "model.decoder.kv_heads" in found
    # Set to what the recipe says, or nowhere.
    assert not {"trainer.accumulate_grad_batches", "data.num_workers", "model.optimizers.hidden.lr"} & found.keys()


def test_the_page_is_made_again_of_whatever_names_the_run(
    folder: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = str(folder / "runs")
    for given in (["one"], [str(run_dir)], [str(run_dir / "checkpoints/step-00000004.ckpt")], [runs], []):
        out = folder / "again.html"
        out.unlink(missing_ok=True)
        capsys.readouterr()
        assert main(["report", *given, "--runs", runs, "--out", str(out)]) == 0
        assert capsys.readouterr().out == f"run {run_dir}\nwrote {out}\n"
        assert "<b>finished</b>" in out.read_text()


def test_what_a_run_did_not_record_is_said(run_dir: Path, tmp_path: Path) -> None:
    """A run of an earlier version that was killed: metrics alone, no telemetry, no checkpoint."""
    old = tmp_path / "old/0001"
    old.mkdir(parents=True)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    with (old / "metrics.jsonl").open("w") as file:
        for line in lines:
            if "metrics" in line:
                line["metrics"] = {key: one for key, one in line["metrics"].items() if key == "train/loss"}
            if line.get("metrics") or "run" in line or line.get("status") == "RUNNING":
                file.write(json.dumps(line) + "\n")
    assert main(["report", str(old)]) == 0
    missing = re.findall(r'<p class="missing">(.*?)</p>', (old / "report.html").read_text())
    text = "\n".join(missing)
    for part in (
        "says RUNNING: it has not come to its end",
        "No throughput: the run logged none",
        "No share of time",
        "No spectra",
        "By source: the held-out data is one data set",
        "By position: not recorded",
        "None: the run wrote none",
        "difference to a recipe: not recorded",
        "The whole configuration: not recorded",
        "Not recorded: the data module has no manifest",
        "None in ",
    ):
        assert part in text, part


def test_what_a_resumed_run_superseded_is_not_on_its_page(folder: Path, run_dir: Path) -> None:
    copy = folder / "again/one/0001"
    shutil.copytree(run_dir, copy)
    flags = ["--name=one", "--ckpt_path", str(copy / "checkpoints/step-00000002.ckpt")]
    fit = arguments(folder / "shards", folder / "again", *flags, "--trainer.val_check_interval=3", steps=3)
    assert main(["fit", *fit]) == 0
    texts = recorded_texts(copy)
    assert [name for name in texts if name.startswith("samples/")] == [
        "samples/step-00000002.json",
        "samples/step-00000003.json",
    ]
    assert [step for step, _ in texts["held_out/by_position.json"]] == [2, 3]
    page = (copy / "report.html").read_text()
    assert "at steps 2, 3 by the weights" in page
    assert "trainer.val_check_interval" in sections(page)["Configuration"]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["two"], "two is neither a path nor a name of runs in {runs}: there are one"),
        (["{folder}/shards"], "{folder}/shards holds no record of a run (metrics.jsonl): name a run directory or"),
        (["one", "--out", "page.pdf"], "--out page.pdf: name a file that ends in .html or .htm"),
        (["one", "--out", "/dev/null/page.html"], "cannot write /dev/null/page.html: "),
        (["--runs", "{folder}/none"], "no run in {folder}/none: train one with lrtrain fit"),
    ],
)
def test_what_has_no_page_is_one_line(
    given: list[str], line: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"folder": folder, "runs": folder / "runs"}
    flags = [] if "--runs" in given else ["--runs", str(folder / "runs")]
    argv = ["report", *(part.format(**names) for part in given), *flags]
    assert refusal(argv, capsys).startswith(line.format(**names))


def test_samples_leave_training_as_it_is_and_can_be_switched_off(folder: Path) -> None:
    name = "--trainer.callbacks=lrtrain.training.TextSamples"
    fit = ["fit", *arguments(folder / "shards", folder / "off", name, "--trainer.callbacks.new_tokens=0", steps=4)]
    assert main(fit) == 0
    off = folder / "off/quickstart/0001"
    assert not [name for name in recorded_texts(off) if name.startswith("samples/")]
    assert "None: the run wrote none" in (off / "report.html").read_text()
    without, with_samples = recorded(off), recorded(folder / "runs/one/0001")
    assert without is not None
    assert with_samples is not None
    assert without.series("train/loss").value.tolist() == with_samples.series("train/loss").value.tolist()
    assert without.last["val/loss"] == with_samples.last["val/loss"]
