"""A shipped YAML is found by its name from any folder, out of the repository or out of an installed wheel."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from commandline import refusal
from lrtrain.cli.main import main
from lrtrain.config.recipes import KINDS, find, folder, names
from lrtrain.config.typed_file import typed
from lrtrain.runtime.errors import UserError

ROOT = Path(__file__).parents[2]
PACKED = (
    "src",
    "configs",
    "docs/templates",
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "NOTICE",
)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources of a wheel; building one leaves files beside them."""
    for name in PACKED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, tmp_path / "copy" / name, ignore=ignored)
        else:
            (tmp_path / "copy").mkdir(exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "copy" / name)
    return tmp_path / "copy"


@pytest.mark.parametrize(
    ("kind", "name", "file"),
    [
        ("", "quickstart", "quickstart.yaml"),
        ("", "quickstart.yaml", "quickstart.yaml"),
        ("", "configs/quickstart.yaml", "quickstart.yaml"),
        ("", "methods/adamw", "methods/adamw.yaml"),
        ("", "parallel/fsdp.yaml", "parallel/fsdp.yaml"),
        ("experiments", "optimizers", "experiments/optimizers.yaml"),
        ("sweeps", "spectron_lr", "sweeps/spectron_lr.yaml"),
        ("scaling_laws", "tiny", "scaling_laws/tiny.yaml"),
        ("scaling_laws", "scaling_laws/tiny.yaml", "scaling_laws/tiny.yaml"),
    ],
)
def test_a_shipped_file_is_found_by_its_name_from_any_folder(kind: str, name: str, file: str, elsewhere: Path) -> None:
    assert find(kind, name) == ROOT / "configs" / file


def test_a_file_of_that_path_wins_and_a_folder_does_not(elsewhere: Path) -> None:
    Path("quickstart").mkdir()
    assert find("", "quickstart") == ROOT / "configs/quickstart.yaml"
    Path("quickstart.yaml").write_text("name: mine")
    assert find("", "quickstart.yaml") == Path("quickstart.yaml")


@pytest.mark.parametrize(
    ("kind", "name", "line"),
    [
        ("", "quickstrat", "quickstrat is neither a file nor a shipped recipe or overlay: did you mean quickstart?"),
        ("", "adamw", "adamw is neither a file nor a shipped recipe or overlay: did you mean methods/adamw?"),
        ("", "mine/quickstat.yaml", "mine/quickstat.yaml is neither a file nor a shipped recipe or overlay: did you"),
        ("scaling_laws", "huge", "huge is neither a file nor a shipped isoFLOP grid: there are paper, small, tiny"),
        ("", "over.yaml", "configuration file over.yaml does not exist: check the path"),
    ],
)
def test_an_unknown_name_gives_the_nearest(kind: str, name: str, line: str, elsewhere: Path) -> None:
    with pytest.raises(UserError) as refused:
        find(kind, name)
    assert str(refused.value).startswith(line)


def test_studies_find_theirs_from_any_folder(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n{name} " in listed for name in names("experiments"))
    assert main(["scaling", "plan", "tiny", "--config", "quickstart", "--out", "grid"]) == 0
    assert Path("grid/plan.yaml").is_file()
    sweep = ["sweep", "--space", "spectron_lr", "--config", "quickstart", "--trainer.max_stesp", "3"]
    assert refusal(sweep, capsys) == "--trainer.max_stesp: unknown key; did you mean max_steps?"


@dataclass(frozen=True)
class Study:
    configs: tuple[Path, ...]


def test_a_study_names_files_beside_it_and_shipped_ones(tmp_path: Path, elsewhere: Path) -> None:
    Path("other.yaml").write_text("name: of the working directory")
    (tmp_path / "own.yaml").write_text("name: own")
    study = typed(Study, {"configs": ["quickstart", "methods/adamw", "own.yaml"]}, tmp_path / "study.yaml")
    shipped = [ROOT / "configs/quickstart.yaml", ROOT / "configs/methods/adamw.yaml"]
    assert study.configs == (*shipped, tmp_path / "own.yaml")
    with pytest.raises(UserError, match=r"configs: the file .*other\.yaml does not exist"):
        typed(Study, {"configs": ["other.yaml"]}, tmp_path / "study.yaml")


def test_every_shipped_file_has_one_kind() -> None:
    files = {path.relative_to(folder()) for path in folder().rglob("*.yaml")}
    named = [Path(kind, f"{name}.yaml") for kind in KINDS for name in names(kind)]
    assert set(named) == files
    assert len(named) == len(files)


def test_a_build_carries_every_shipped_file(copy: Path, tmp_path: Path) -> None:
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "built")]
    subprocess.run(build, cwd=copy, check=True, capture_output=True)
    ours = {path.relative_to(copy / "src") for path in (copy / "src").rglob("*") if path.suffix in (".py", ".yaml")}
    assert ours <= {path.relative_to(tmp_path / "built") for path in (tmp_path / "built").rglob("*")}
    program = "from lrtrain.config.recipes import folder, names; print(folder(), *names())"
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "built", check=True, capture_output=True, text=True
    )
    place, *recipes = found.stdout.split()
    assert Path(place) == tmp_path / "built/lrtrain/configs"
    assert recipes == names()
    new = "import sys; sys.path.insert(0, '.'); from lrtrain.cli.main import main; main(['new', 'optimizer', 'mine'])"
    subprocess.run([sys.executable, "-c", new], cwd=tmp_path / "built", check=True)
    assert (tmp_path / "built" / "mine.yaml").is_file()


@pytest.mark.slow
def test_an_installed_wheel_runs_its_recipes_from_an_empty_folder(copy: Path, elsewhere: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "-q"]
    wheels, target = tmp_path / "wheels", tmp_path / "site"
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(copy)], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], check=True)
    fit = ["fit", "--config", "quickstart", "--config", "methods/adamw", "--print_config"]
    program = f"import sys; sys.path.insert(0, {str(target)!r}); from lrtrain.cli.main import main; main({fit})"
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert str(target / "lrtrain/configs/quickstart.yaml") in printed.stderr
    assert yaml.safe_load(printed.stdout)["name"] == "adamw"
