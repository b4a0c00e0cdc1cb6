"""The Dockerfile and .dockerignore, read: lint, stages, user, entry point, labels, and what reaches the build."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from docker.utils.build import exclude_paths

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"
NEEDED = {
    "LICENSE",
    "MANIFEST.in",
    "NOTICE",
    "README.md",
    "constraints.txt",
    "pyproject.toml",
    "setup.py",
    "configs/quickstart.yaml",
    "configs/methods/adamw.yaml",
    "docs/templates",
    "src/lrtrain/cli/main.py",
}


def instructions() -> list[tuple[str, str]]:
    """Keyword and arguments of every instruction, continued lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.M).replace("\\\n", " ")
    return [(line.split()[0], " ".join(line.split()[1:])) for line in text.splitlines() if line.strip()]


def stages() -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for keyword, arguments in instructions():
        if keyword == "FROM":
            found.append([])
        found[-1].append((keyword, arguments))
    return found


FINAL = stages()[-1]


def final(keyword: str) -> list[str]:
    return [arguments for found, arguments in FINAL if found == keyword]


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    ran = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "")


def test_every_stage_stands_on_one_base_of_a_stated_version() -> None:
    bases = [arguments.split() for keyword, arguments in instructions() if keyword == "FROM"]
    names = {base[2] for base in bases if len(base) == 3}
    (outer,) = [base[0] for base in bases if base[0] not in names]
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", outer)
    assert [base[0] for base in bases[1:]] == ["python", "packages", "python"]


def test_packages_are_those_of_the_constraints_and_installed_before_the_code() -> None:
    _, packages, project, _ = stages()
    installs = [arguments for keyword, arguments in packages if keyword == "RUN" and "pip install" in arguments]
    assert len(installs) == 1
    assert "pip install --constraint constraints.txt --requirement requirements.txt" in installs[0]
    assert [arguments for keyword, arguments in packages if keyword == "COPY"] == ["constraints.txt pyproject.toml ./"]
    assert any("pip install --no-deps" in arguments for keyword, arguments in project if keyword == "RUN")


def test_requirements_are_those_of_the_project_with_hugging_face_and_s3(tmp_path: Path) -> None:
    (command,) = [arguments for keyword, arguments in stages()[1] if keyword == "RUN" and "tomllib" in arguments]
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    subprocess.run(["sh", "-c", command.replace("python3", sys.executable)], cwd=tmp_path, check=True)
    lines = (tmp_path / "requirements.txt").read_text().splitlines()
    assert {"torch>=2.11", "transformers>=5.0"} <= {*lines}
    assert any(line.startswith("boto3") for line in lines)
    assert not any(line.startswith(("pytest", "lrtrain")) for line in lines)


def test_no_cache_stays() -> None:
    assert any("PIP_NO_CACHE_DIR=1" in arguments for keyword, arguments in stages()[1] if keyword == "ENV")
    assert not any("pip" in arguments for arguments in final("RUN"))
    (apt,) = [arguments for arguments in final("RUN") if "apt-get" in arguments]
    assert "apt-get clean" in apt
    assert "rm -rf /var/lib/apt/lists/*" in apt
    assert "--no-install-recommends" in apt


def test_the_last_stage_has_a_compiler_a_numeric_user_volumes_and_the_entry_point() -> None:
    assert any(re.search(r"apt-get install .*\bg\+\+", arguments) for arguments in final("RUN"))
    assert final("USER") == ["1000:0"]
    assert final("ENTRYPOINT") == ['["lrtrain"]']
    assert final("VOLUME") == ['["/workspace", "/home/lrtrain", "/tmp"]']
    assert final("WORKDIR") == ["/workspace"]


def test_the_commit_is_a_label_and_comes_last_so_that_it_spares_the_layers() -> None:
    assert 'org.opencontainers.image.revision="$COMMIT"' in final("LABEL")[0]
    keywords = [keyword for keyword, arguments in FINAL if keyword != "ARG" or arguments != "COMMIT="]
    position = FINAL.index(("ARG", "COMMIT="))
    assert {"RUN", "COPY"}.isdisjoint(keywords[position:])
    assert any("LRTRAIN_COMMIT=$COMMIT" in arguments for arguments in final("ENV"))  # what a run's record says


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What a build gets of a checkout that was worked in."""
    folder = tmp_path_factory.mktemp("checkout")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    litter = [".git/config", ".venv/bin/python", "runs/a/0001/config.yaml", "data/x/manifest.json", "secret.env"]
    litter += ["src/lrtrain/__pycache__/a.pyc", "src/lrtrain.egg-info/PKG-INFO", ".mypy_cache/a", "build/lib/a.py"]
    for name in [*tracked.stdout.splitlines(), *litter]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    return set(exclude_paths(str(folder), [line for line in patterns if line and not line.startswith("#")]))


def test_the_build_gets_what_it_needs(context: set[str]) -> None:
    assert context >= NEEDED


def test_the_build_gets_no_history_environment_data_or_run(context: set[str]) -> None:
    tops = {name.split("/")[0] for name in context} - {"Dockerfile", ".dockerignore"}  # which docker adds by itself
    assert tops == {name.split("/")[0] for name in NEEDED}
    assert not [name for name in context if "__pycache__" in name or "egg-info" in name]
    assert {name for name in context if name.startswith("docs/")} == {
        name for name in context if name.startswith("docs/templates")
    }
