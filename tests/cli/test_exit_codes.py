"""What a scheduler learns from an exit code: every command, every way in which a fit ends, every process alike."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import toy
from commandline import arguments, refusal
from endings import CODES, ended_by
from lrtrain.checkpoint.directory import steps_in
from lrtrain.cli.main import COMMANDS, main

SAVED = {"done": 3, "SIGINT": 3, "SIGTERM": 3, "SIGUSR1": 3, "mistake": 2, "outage": 2, "fault": 2}
"""The step that each ending leaves saved: a signal lets the step end that runs, an error has lost it."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "doctor"])  # it reports mistakes
def test_a_mistake_on_the_command_line_ends_every_command_with_2(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal([command, "--no-such-option", "1"], capsys)


@pytest.mark.usefixtures("foreground")
@pytest.mark.parametrize("how", CODES)
def test_every_ending_of_a_fit_has_its_code_and_leaves_a_checkpoint(how: str, shards: Path, tmp_path: Path) -> None:
    fit = arguments(shards, tmp_path, *ended_by(how), steps=3)
    try:
        code = main(["fit", *fit])
    except SystemExit as ended:
        code = int(ended.code or 0)
    except RuntimeError:
        code = 1  # as Python ends when nobody catches it
    assert code == CODES[how]
    assert max(steps_in(tmp_path / "quickstart/0001/checkpoints")) == SAVED[how]


def test_help_says_what_they_mean(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    said = capsys.readouterr().out
    assert all(f"{code} " in said for code in {*CODES.values()} - {138})


@pytest.mark.slow
@pytest.mark.usefixtures("foreground")
@pytest.mark.parametrize("how", CODES)
def test_the_process_ends_with_that_code(how: str, shards: Path, tmp_path: Path) -> None:
    fit = arguments(shards, tmp_path, *ended_by(how), steps=3)
    command = [sys.executable, "-m", "lrtrain", "fit", *fit]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert ended.returncode == CODES[how], ended.stderr
    assert ("Traceback" in ended.stderr) is (how == "fault")
