"""The tracking spool: strict records that survive crashes and full disks, with one owner."""

import json
import math
import resource
import time
from pathlib import Path

import pytest

from lrtrain.runtime.errors import UserError
from lrtrain.tracking.course import records
from lrtrain.tracking.spool import Spool, SpoolBusyError


def test_a_record_is_one_line_of_strict_json_with_its_time_in_milliseconds(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append({"step": 3, "metrics": {"a": 0.1, "b": math.nan, "c": math.inf, "d": -math.inf}})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    (line,) = spool.path.read_text().splitlines()
    record = json.loads(line, parse_constant=refuse)
    assert record["metrics"] == {"a": 0.1, "b": "NaN", "c": "Infinity", "d": "-Infinity"}
    assert abs(record["time"] - time.time() * 1000) < 60_000


def test_a_line_that_a_crash_cut_short_is_dropped_and_the_rest_stays(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append({"step": 1, "metrics": {"a": 1.0}})
    spool.close()
    with open(spool.path, "a") as file:
        file.write('{"time": 1, "step": 2, "metr')
    assert [record["step"] for _, record in records(spool.path)] == [1]
    spool = Spool(tmp_path)
    spool.append({"step": 2, "metrics": {"a": 2.0}})
    assert [record["step"] for _, record in records(spool.path)] == [1, 2]


def test_a_full_disk_is_one_line_and_leaves_no_half_record(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append({"step": 1, "metrics": {"a": 1.0}})
    before, limits = spool.path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: .*free some space"):
            spool.append({"step": 2, "metrics": {"a": 2.0}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert spool.path.read_bytes() == before
    spool.append({"step": 2, "metrics": {"a": 2.0}})
    assert [record["step"] for _, record in records(spool.path)] == [1, 2]


def test_a_run_directory_has_one_owner(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with pytest.raises(SpoolBusyError, match="in use by another process"):
        Spool(tmp_path)
    spool.close()
    Spool(tmp_path).close()


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"time": 1, "status": "RUNNING"}\nrubbish\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: the line at byte 33 is damaged"):
        Spool(tmp_path)
