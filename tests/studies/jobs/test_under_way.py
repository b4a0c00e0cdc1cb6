"""The line that says how far a study is: what an earlier call trained tells nothing of the time that is left."""

from pathlib import Path

import pytest

from lrtrain.studies.jobs import under_way
from lrtrain.studies.jobs.job import Job
from lrtrain.studies.jobs.under_way import UnderWay


def test_the_time_left_is_that_of_what_is_trained_now(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = [0.0]
    monkeypatch.setattr(under_way.time, "monotonic", lambda: now[0])
    work = UnderWay("searches", 12)

    def run(name: str, seconds: float) -> None:
        job = Job(name, (), {}, tmp_path)
        work.begin(job)
        now[0] += seconds
        work.end(job)

    for number in range(1, 11):  # kept ones
        run(f"kept{number}", 0.1)
        work.done(number)
    work.begin(Job("next", (), {}, tmp_path))
    assert work.line() == "10 of 12 searches (83%), 10 runs ended; now next"
    run("trained", 600)
    work.done(11)
    assert work.line() == "11 of 12 searches (92%), 11 runs ended, about 10.0 minutes left; now next"
