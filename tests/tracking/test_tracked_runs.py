"""Runs read back out of MLflow are what was logged."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrtrain.runtime.errors import UserError
from lrtrain.tracking.runs import TrackedRun, tracked_runs
from lrtrain.tracking.series import from_client, from_database
from tracked import make_logger, mlflow_run


def track(root: Path, run: str, status: str = "success", tags: dict[str, str] | None = None, **metrics: Any) -> None:
    """A run of the name before the slash; each metric is a list of its values at steps 0, 1, …"""
    logger = make_logger(root, run, tags=tags)
    logger.log_config("", {"model": {"rank": 64, "words": "x" * 7000}, "seed_everything": 0})
    for key, values in metrics.items():
        for step, value in enumerate(values):
            logger.log_metrics({key: value}, step)
    logger.finalize(status)


def read(root: Path, **options: Any) -> list[TrackedRun]:
    return tracked_runs(None, str(root), **options)


def refused(root: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_has_its_configuration_tags_and_points(root: Path) -> None:
    track(root, "a/0001", tags={"team": "low rank"}, loss=[3.0, 2.5], other=[1.0])
    (run,) = read(root, names=["a"], metrics=["lo*"])
    assert (run.name, run.run_name, run.status) == ("a", "a/0001", "FINISHED")
    assert run.params == {"model.rank": "64", "model.words": "x" * 7000, "seed_everything": "0"}
    assert run.tags["team"] == "low rank"
    assert run.last == {"loss": 2.5, "other": 1.0}
    assert list(run.metrics) == ["loss"]
    np.testing.assert_array_equal(run.series("loss").step, [0, 1])
    np.testing.assert_array_equal(run.series("loss").value, [3.0, 2.5])
    assert list(read(root, names=["a"])[0].metrics) == ["loss", "other"]
    assert read(root, names=["a"], metrics=[])[0].metrics == {}


def test_what_a_resumed_run_changed_has_its_last_value(root: Path) -> None:
    track(root, "a/0001", status="killed", loss=[3.0])
    logger = make_logger(root, "a/0001")
    logger.log_config("", {"model": {"rank": 32}})
    logger.finalize("success")
    (run,) = read(root, names=["a"])
    assert run.params["model.rank"] == "32"
    assert run.status == "FINISHED"


def test_a_database_read_directly_and_through_mlflow_gives_the_same(root: Path) -> None:
    track(root, "a/0001", loss=[3.0, math.nan, math.inf, -math.inf, 0.1], other=[1.0])
    track(root, "a/0002", loss=[2.0])
    clients = [mlflow_run(root / f"a/000{number}") for number in (1, 2)]
    client, ids = clients[0][0], [run.info.run_id for _, run in clients]
    for time, value in ((10, 7.0), (30, 9.0), (20, 8.0)):  # the same step by three sessions
        client.log_metric(ids[1], "loss", value, timestamp=time, step=5)
    keys = {ids[0]: ["loss", "other"], ids[1]: ["loss"]}
    direct, general = from_database(f"sqlite:///{root}/mlflow.db", keys), from_client(client, keys)
    for run, of_run in keys.items():
        assert list(direct[run]) == list(general[run]) == of_run
        for key in of_run:
            np.testing.assert_array_equal(direct[run][key].step, general[run][key].step)
            np.testing.assert_array_equal(direct[run][key].value, general[run][key].value)
    np.testing.assert_array_equal(direct[ids[0]]["loss"].value, [3.0, math.nan, math.inf, -math.inf, 0.1])
    np.testing.assert_array_equal(direct[ids[1]]["loss"].step, [0, 5])
    np.testing.assert_array_equal(direct[ids[1]]["loss"].value, [2.0, 9.0])


def test_runs_are_found_by_name_tag_and_study_and_a_parent_is_none_of_them(root: Path) -> None:
    study = {"lrtrain.study": "rates"}
    track(root, "study/0001", tags=study)
    _, parent = mlflow_run(root / "study/0001")
    for name in ("t0", "t1"):
        track(root, f"{name}/0001", tags={**study, "mlflow.parentRunId": parent.info.run_id, "who's": "it is"})
    track(root, "t2/0001", status="failed", tags=study)
    track(root, "else/0001", tags={"who's": "it's"})
    names = [run.name for run in read(root, study="rates")]
    assert names == ["t0", "t1"]
    assert [run.name for run in read(root, names=["t1", "else", "t0"])] == ["t1", "else", "t0"]
    assert [run.name for run in read(root, tags={"who's": "it's"})] == ["else"]
    assert [run.name for run in read(root, names=["t1"], study="rates")] == ["t1"]
    line = "no run of the name 'else' with lrtrain.study=rates has finished: let lrtrain fit end first"
    assert refused(root, names=["t1", "else"], study="rates") == line


def test_what_is_not_there_is_named_with_what_is(root: Path) -> None:
    assert refused(root) == "no run is tracked: train one with lrtrain fit"
    track(root, "a/0001", tags={"lrtrain.study": "rates", "team": "low rank"}, loss=[3.0])
    track(root, "b/0001", status="killed", tags={"team": "dense"})
    assert refused(root, names=["aa"]) == "no runs of the name 'aa' are tracked; there are a"
    assert refused(root, names=["a", "b"]) == "no run of the name 'b' has finished: let lrtrain fit end first"
    assert refused(root, study="rate") == "no study 'rate' is tracked; there are rates"
    assert refused(root, tags={"tea": "x"}).startswith("no run has the tag 'tea'; there are team")
    assert refused(root, tags={"team": "low"}) == "no run has the tag team=low; there are low rank"
    line = "no run has the tag team=dense among the runs of the name 'a'; there are low rank"
    assert refused(root, names=["a"], tags={"team": "dense"}) == line
    assert refused(root, tags={"team": "dense"}) == "no run with team=dense has finished: let lrtrain fit end first"
    line = "no run has all of team=dense, lrtrain.study=rates: leave one out"
    assert refused(root, tags={"team": "dense"}, study="rates") == line
    assert refused(root, tags={"team": "'\""}).startswith("the tag value '\\'\"' has both kinds of quotes")
    (run,) = read(root, names=["a"])
    with pytest.raises(UserError, match="run a/0001 has no metric 'los'; there are loss"):
        run.series("los")


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("text" * 1000)
    assert "mlflow.db does not answer (file is not a database)" in refused(tmp_path)
