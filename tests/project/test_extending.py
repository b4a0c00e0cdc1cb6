"""docs/extending.md, worked from an empty folder: every command runs, and every file is what it shows.

Its experiment trains six models, a minute's work, and is planned alone here; `-m slow` does it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?:^`([\w.]+)`\n\n)?^```(\w+)\n(.*?)^```$", re.M | re.S)
"""A file that the page shows, by its name and contents, or commands."""


def environment(folder: Path) -> dict[str, str]:
    """One in which `lrtrain` and `python` are this interpreter's, with the sources beside these tests."""
    programs = folder / "programs"
    programs.mkdir()
    for name, command in (("lrtrain", "-P -m lrtrain"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n')
        (programs / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
    }


EXPERIMENT = "lrtrain experiment duel.yaml --jobs 2\n"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("trains", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_command_of_the_page_runs_and_every_file_is_as_shown(tmp_path: Path, trains: bool) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    variables = environment(tmp_path)
    shown, said = set(), ""
    for name, language, content in BLOCK.findall(PAGE):
        if name:
            shown.add(name)
            if (folder / name).exists():
                assert (folder / name).read_text() == content, name
            else:
                (folder / name).write_text(content)
        else:
            assert language == "sh"
            if content == EXPERIMENT and not trains:
                content = content.replace("\n", " --plan\n")
            command = ["bash", "-euc", content]
            done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{content}\n{done.stdout}\n{done.stderr}"
            said += done.stdout
    assert {
        "my_optimizer.py",
        "my_projection.py",
        "my_constraint.py",
        "my_loss.py",
        "my_data.py",
        "my_format.py",
    } <= shown
    assert ("verdict: " in said) == trains
    assert re.search(r"^spectron +\d", said, re.M)  # the experiment's table, planned or measured
    assert "MyOptimizer" in said
