"""What an earlier call trained is taken as it is, but not for a run on other data of the same name."""

import shutil
from pathlib import Path

import pytest

import toy
from commandline import RECIPE
from lrtrain.data.preparation import PrepareSpec, prepare
from lrtrain.runtime.errors import UserError
from lrtrain.studies.jobs.job import Job
from lrtrain.studies.jobs.launch import run_job


def test_a_finished_run_is_not_taken_for_one_on_other_shards(tmp_path: Path) -> None:
    shards = toy.shards(tmp_path)
    flags = [flag.removeprefix("--").split("=", 1) for flag in toy.flags(shards, tmp_path, steps=2)]
    settings: dict[str, object] = {key: value for key, value in flags if key != "runs"}
    job = Job("x", (RECIPE,), {**settings, "trainer.logger": False}, tmp_path)
    first = run_job(job)
    assert first.status == "finished"
    kept = run_job(job)
    assert (kept.run_dir, kept.metric) == (first.run_dir, first.metric)
    text = tmp_path / "text.jsonl"
    text.write_text(text.read_text().replace("spectral", "special"))
    shutil.rmtree(shards)
    prepare(PrepareSpec(source=[str(text)], train_vocab_size=toy.VOCABULARY, val_fraction=0.2), str(shards))
    with pytest.raises(UserError, match=r"x/0001 was trained on another data set than .*/shards is now \(manifest\."):
        run_job(job)
