"""`make install` takes the versions of constraints.txt, which are within what the package allows."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "constraints.txt").read_text().splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = [
    Requirement(line)
    for line in [*PROJECT["dependencies"], *EXTRAS["hf"], *EXTRAS["dev"]]
    if not line.startswith("lrtrain")
]
EXACT = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LINES)}


def test_it_holds_names_and_exact_versions_alone() -> None:
    assert not [line for line in LINES if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==\d[\w.]*", line)]
    assert len(EXACT) == len(LINES)
    assert "lrtrain" not in EXACT


@pytest.mark.parametrize("wanted", DIRECT, ids=lambda wanted: wanted.name)
def test_a_direct_dependency_has_a_version_within_its_bounds(wanted: Requirement) -> None:
    assert wanted.specifier.contains(EXACT[canonicalize_name(wanted.name)])


@pytest.mark.parametrize(("flags", "constrained"), [([], True), (["LATEST=1"], False)])
def test_make_install_takes_it_unless_the_latest_are_asked_for(flags: list[str], constrained: bool) -> None:
    said = subprocess.run(["make", "-n", "-B", "install", *flags], cwd=ROOT, check=True, capture_output=True, text=True)
    assert ("-c constraints.txt" in said.stdout) is constrained
