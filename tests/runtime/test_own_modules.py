"""Modules of the user's own: found beside the YAML and in the working directory, after everything that is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import subprocess, sys
from lrtrain.runtime.own_modules import environment, find_own_modules
find_own_modules(sys.argv[1:])
import beside_the_yaml, in_the_folder, random
print(random.__file__)
if "--child" in sys.argv:
    argv = ["-c", "from lrtrain.runtime.own_modules import find_own_modules; find_own_modules([]);"
                  "import beside_the_yaml, random; print(random.__file__)"]
    subprocess.run([sys.executable, *argv], env=environment(), check=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with a module, and a YAML file elsewhere with another; both have a `random.py`."""
    for name, module in (("here", "in_the_folder"), ("there", "beside_the_yaml")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{module}.py").write_text("")
        (tmp_path / name / "random.py").write_text("raise RuntimeError('the wrong one')")
    (tmp_path / "there" / "recipe.yaml").write_text("name: x\n")
    return tmp_path / "here"


@pytest.mark.parametrize("flag", [["--config", "../there/recipe.yaml"], ["--config=../there/recipe.yaml"]])
def test_the_working_directory_and_the_yamls_folder_come_after_the_packages(folder: Path, flag: list[str]) -> None:
    source = Path(__file__).parents[2] / "src"
    environment = {**os.environ, "PYTHONPATH": str(source), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", PROGRAM, *flag, "--child"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    here, child = done.stdout.split()
    assert here == child
    assert not here.startswith(str(folder.parent))


def test_without_a_yaml_file_its_folder_is_not_searched(folder: Path) -> None:
    source = Path(__file__).parents[2] / "src"
    environment = {**os.environ, "PYTHONPATH": str(source), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", PROGRAM, "--config", "../there/missing.yaml"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert "No module named 'beside_the_yaml'" in done.stderr
