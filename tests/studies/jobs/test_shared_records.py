"""What one machine has trained counts as trained on another that has its records, and no others count."""

import json
import lzma
import math
import platform
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import stand_in_fit
import toy
from commandline import RECIPE
from lrtrain.data.preparation import PrepareSpec, prepare
from lrtrain.runtime.errors import UserError
from lrtrain.studies.jobs import launch
from lrtrain.studies.jobs.job import Job, Outcome
from lrtrain.studies.jobs.launch import run_job
from lrtrain.studies.jobs.shared_records import trained_elsewhere
from lrtrain.tracking.recorded import recorded
from lrtrain.tracking.runs import TrackedRun

RATE = "model.optimizers.hidden.lr"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "COMMAND", (sys.executable, "-I", stand_in_fit.__file__))


def job(tmp_path: Path, machine: str, rate: float = 0.01, name: str = "toy") -> Job:
    (tmp_path / machine).mkdir(exist_ok=True)
    return Job(name, (), {RATE: rate}, tmp_path / machine, records=tmp_path / "records")


def starts(tmp_path: Path, machine: str) -> list[str]:
    file = tmp_path / machine / "starts"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.usefixtures("stand_in")
def test_a_job_that_ended_elsewhere_is_taken_from_its_record(tmp_path: Path) -> None:
    first = run_job(job(tmp_path, "one"))
    again = run_job(job(tmp_path, "two"))
    assert (again.status, again.metric, again.kept) == (first.status, first.metric, True)
    assert (starts(tmp_path, "one"), starts(tmp_path, "two")) == (["toy fresh 1"], [])
    assert [file.name for file in (tmp_path / "records").iterdir()] == ["toy.jsonl.xz"]


@pytest.mark.usefixtures("stand_in")
def test_a_diverged_job_is_taken_with_its_reason_and_a_failed_one_leaves_no_record(tmp_path: Path) -> None:
    diverged = job(tmp_path, "one", 0.7)
    (diverged.folder / "0001").mkdir(parents=True)
    stand_in_fit.record(diverged.folder / "0001", status="FAILED")
    launch.record_job(diverged)
    first, again = run_job(diverged), run_job(job(tmp_path, "two", 0.7))
    assert [(one.status, one.metric) for one in (first, again)] == [("diverged", math.inf)] * 2
    assert again.reason == first.reason
    assert run_job(job(tmp_path, "one", -1, "failing")).status == "failed"
    assert [file.name for file in (tmp_path / "records").iterdir()] == ["toy.jsonl.xz"]


@pytest.mark.usefixtures("stand_in")
def test_a_record_of_other_settings_and_a_damaged_one_are_refused(tmp_path: Path) -> None:
    run_job(job(tmp_path, "one"))
    with pytest.raises(UserError, match=rf"toy.jsonl.xz is of a run with other settings \({RATE}: 0.01 there, 0.02"):
        run_job(job(tmp_path, "two", 0.02))
    file = tmp_path / "records/toy.jsonl.xz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"toy.jsonl.xz is damaged: "):
        run_job(job(tmp_path, "three"))
    file.write_bytes(lzma.compress(b'{"configs": []}\n{"no": "time"}\n'))
    with pytest.raises(UserError, match=r"toy.jsonl.xz is damaged: "):
        run_job(job(tmp_path, "three"))


@pytest.mark.usefixtures("stand_in")
def test_a_run_whose_checkpoint_is_wanted_is_trained_here(tmp_path: Path) -> None:
    run_job(job(tmp_path, "one"))
    outcome = run_job(job(tmp_path, "two"), keep_checkpoints=True)
    assert outcome.run_dir is not None
    assert list((outcome.run_dir / "checkpoints").iterdir())
    assert starts(tmp_path, "two") == ["toy fresh 1"]


@pytest.mark.usefixtures("stand_in")
def test_a_job_that_is_under_way_here_goes_on_here(tmp_path: Path) -> None:
    assert run_job(job(tmp_path, "two", 1e-5)).status == "failed"
    launch.record_job(job(tmp_path, "two"))
    run_job(job(tmp_path, "one"))
    assert not run_job(job(tmp_path, "two")).kept


def test_a_record_holds_the_run_without_paths_host_and_user_and_is_of_its_data_alone(tmp_path: Path) -> None:
    shards = toy.shards(tmp_path)
    flags = [flag.removeprefix("--").split("=", 1) for flag in toy.flags(shards, tmp_path, steps=3)]
    settings: dict[str, object] = {key: value for key, value in flags if key != "runs"} | {"trainer.logger": False}
    one = Job("x", (RECIPE,), settings, tmp_path / "one", records=tmp_path / "records")
    two = replace(one, runs=tmp_path / "two")
    first, again = run_job(one), run_job(two)
    there, here = _run(first), _run(again)
    assert here.last == there.last
    assert {name: series.value.tolist() for name, series in here.metrics.items()} == {
        name: series.value.tolist() for name, series in there.metrics.items()
    }
    assert here.params.items() <= there.params.items()
    assert here.params["model.decoder.init_args.width"] == there.params["model.decoder.init_args.width"]
    assert trained_elsewhere(one, first) == ""
    assert trained_elsewhere(two, again).startswith(f"{there.tags['hardware.cpu']}, torch ")
    _, *lines = lzma.decompress((tmp_path / "records/x.jsonl.xz").read_bytes()).decode().splitlines()
    text = "\n".join(lines).replace(str(shards), "")  # which the settings name
    assert str(tmp_path) not in text
    assert json.dumps(platform.node()) not in text
    source = tmp_path / "text.jsonl"
    source.write_text(source.read_text().replace("spectral", "special"))
    shutil.rmtree(shards)
    prepare(PrepareSpec(source=[str(source)], train_vocab_size=toy.VOCABULARY, val_fraction=0.2), str(shards))
    with pytest.raises(
        UserError, match=r"was trained on another data set than .*give another --runs, or other --records"
    ):
        run_job(replace(one, runs=tmp_path / "three"))


def _run(outcome: Outcome) -> TrackedRun:
    assert outcome.run_dir is not None
    found = recorded(outcome.run_dir)
    assert found is not None
    return found
