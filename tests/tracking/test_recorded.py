"""A run read back from its own record."""

import math
from pathlib import Path

import pytest

from lrtrain.runtime.errors import UserError
from lrtrain.tracking.recorded import recorded
from lrtrain.tracking.spool import Spool


def test_a_record_gives_series_last_values_parameters_and_status_and_is_read_again_as_it_grows(tmp_path: Path) -> None:
    run_dir = tmp_path / "toy/0001"
    spool = Spool(run_dir)
    spool.start("toy/0001", "toy")
    spool.append({"params": {"model.rank": "64"}}, 5)
    spool.append({"step": 3, "metrics": {"loss": 2.0, "lr": 0.1}})
    spool.append({"step": 1, "metrics": {"loss": math.inf}})
    spool.append({"step": 3, "metrics": {"loss": 1.5}})
    run = recorded(run_dir)
    assert run is not None
    assert (run.run_name, run.name, run.status) == ("toy/0001", "toy", "RUNNING")
    assert run.params == {"model.rank": "64"}
    assert run.last == {"loss": 1.5, "lr": 0.1}
    assert (run.series("loss").step.tolist(), run.series("loss").value.tolist()) == ([1, 3], [math.inf, 1.5])
    assert recorded(run_dir) is run
    spool.finish("FINISHED", run.start + 2000)
    spool.close()
    ended = recorded(run_dir)
    assert ended is not None
    assert (ended.status, ended.end) == ("FINISHED", run.start + 2000)
    with pytest.raises(UserError, match="run toy/0001 has no metric 'los'; there are loss"):
        ended.series("los")


def test_a_folder_without_a_record_is_no_run_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    assert recorded(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text("")
    assert recorded(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text("rubbish\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: the line at byte 0 is damaged"):
        recorded(tmp_path)
