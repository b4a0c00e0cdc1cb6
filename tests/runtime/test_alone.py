"""One process at a time, by a file that is locked."""

import os
import signal
from pathlib import Path

import pytest

from forked import FORK
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import alone


def killed_inside(lock: Path) -> None:
    with alone(lock, "busy"):
        os.kill(os.getpid(), signal.SIGKILL)


def count_inside(lock: Path, counted: Path) -> None:
    """Adds one to a number a hundred times, each time inside."""
    for _ in range(100):
        while True:
            try:
                with alone(lock, "busy"):
                    number = int(counted.read_text())
                    counted.write_text("")
                    counted.write_text(str(number + 1))
                break
            except UserError:
                continue


def test_one_is_inside_and_the_file_goes_with_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with alone(lock, "busy"):
        with pytest.raises(UserError, match="busy"), alone(lock, "busy"):
            pass
        assert lock.exists()
    assert not lock.exists()
    with pytest.raises(ValueError, match="inside"), alone(lock, "busy"):
        raise ValueError("inside")
    assert not lock.exists()


def test_one_that_was_killed_keeps_nobody_out(tmp_path: Path) -> None:
    process = FORK.Process(target=killed_inside, args=(tmp_path / "lock",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with alone(tmp_path / "lock", "busy"):
        assert (tmp_path / "lock").exists()
    assert not (tmp_path / "lock").exists()


def test_no_two_are_inside_however_often_they_come(tmp_path: Path) -> None:
    (tmp_path / "counted").write_text("0")
    processes = [FORK.Process(target=count_inside, args=(tmp_path / "lock", tmp_path / "counted")) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "counted").read_text() == "300"
