"""The line that says how far a study is: what an earlier call trained tells nothing of the time that is left."""

from pathlib import Path

import pytest

from lrtrain.studies.jobs import under_way
from lrtrain.studies.jobs.job import Job, Outcome
from lrtrain.studies.jobs.under_way import UnderWay


def test_the_time_left_is_that_of_what_is_trained_now(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = [0.0]
    monkeypatch.setattr(under_way.time, "monotonic", lambda: now[0])
    work = UnderWay("searches", 12)

    def run(name: str, seconds: float, kept: bool = False) -> None:
        def train() -> Outcome:
            said.append(work.line())
            now[0] += seconds
            return Outcome("finished", 1.0, None, "", seconds, kept=kept)

        work.run(Job(name, (), {}, tmp_path), train)

    said: list[str] = []
    for number in range(1, 11):
        run(f"kept{number}", 0.1, kept=True)
        work.done(number)
    run("trained", 600)
    work.done(11)
    run("last", 600)
    assert said[-2] == "10 of 12 searches (83%), 10 runs ended; now trained"
    assert said[-1] == "11 of 12 searches (92%), 11 runs ended, about 10.0 minutes left; now last"
    assert work.line() == ""
