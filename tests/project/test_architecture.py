"""docs/architecture.md shows what is there."""

import re
from pathlib import Path

import pytest
from test_imports import LAYERS, STUDIES

import lrtrain

SOURCES = Path(lrtrain.__file__).parent
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
PACKAGES = {path.parent.relative_to(SOURCES).as_posix() for path in SOURCES.rglob("__init__.py")} - {"."}


def section(page: str, title: str) -> str:
    assert f"## {title}\n" in page, f"the page lost its section {title}"
    return page.partition(f"## {title}\n")[2].partition("\n## ")[0]


def drawn(tree: str) -> dict[str, str]:
    """What a tree of the form `  name/   a few words` says of each package below `src/lrtrain/`."""
    inside = tree.partition("src/lrtrain/\n")[2]
    found: dict[str, str] = {}
    parent = ""
    for indent, name, words in re.findall(r"^( +)(\w+)/ +(\S.*)$", inside, re.M):
        parent = name if len(indent) == 2 else parent
        found[name if len(indent) == 2 else f"{parent}/{name}"] = words
    return found


def test_the_tree_shows_every_package_with_what_it_is_for() -> None:
    tree = drawn(section(PAGE, "The tree"))
    missing, gone = sorted(PACKAGES - tree.keys()), sorted(tree.keys() - PACKAGES)
    assert (missing, gone) == ([], []), f"docs/architecture.md, The tree: add {missing}, remove {gone}"


def test_folders_that_the_tree_names_exist() -> None:
    for line in re.findall(r"^(?:configs|tests|benchmarks|docs)/ .*$", section(PAGE, "The tree"), re.M):
        folder, *inside = re.findall(r"\b\w+/(?!\w)", line)
        assert all((ROOT / folder / name).is_dir() for name in ("", *inside)), line


def test_every_file_is_there_with_a_few_words() -> None:
    complaints = []
    listed: dict[str, list[str]] = {}
    for package, text in re.findall(r"^- \*\*`([\w/]+)/`\*\*(.*(?:\n  .*)*)", section(PAGE, "Every file"), re.M):
        entries = re.split(r"\s+·\s+", text.strip())
        listed["." if package == "lrtrain" else package] = [re.match(r"`([^`]+)`", e).group(1) for e in entries]  # type: ignore[union-attr]
        complaints += [f"{package}/: say what {e} is" for e in entries if re.fullmatch(r"`[^`]+`\s*", e)]
    for folder in sorted({path.parent for path in SOURCES.rglob("__init__.py")}):
        package = folder.relative_to(SOURCES).as_posix()
        there = {path.name for path in folder.glob("*.py")} - ({"__init__.py"} if package != "." else set())
        names = listed.pop(package, [])
        complaints += [f"{package}/: add `{name}`" for name in sorted(there - set(names))]
        complaints += [f"{package}/: remove `{name}`" for name in sorted(set(names) - there)]
        complaints += [f"{package}/: `{name}` stands there twice" for name in set(names) if names.count(name) > 1]
    complaints += [f"remove the package {package}/" for package in listed]
    assert not complaints, "docs/architecture.md, Every file:\n" + "\n".join(complaints)


@pytest.mark.parametrize("layers", [LAYERS, STUDIES], ids=["packages", "studies"])
def test_the_tables_of_imports_are_those_that_a_test_holds(layers: dict[str, set[str]]) -> None:
    said: dict[str, set[str]] = {}
    for left, right in re.findall(r"^\| (`.*?) \| (.*) \|$", section(PAGE, "Which package may import which"), re.M):
        for package in re.findall(r"`([^`]+)`", left):
            assert package not in said, f"{package} stands in two rows"
            said[package] = set(re.findall(r"`([^`]+)`", right))
    held = {package: below - {""} for package, below in layers.items() if package not in ("", "__main__")}
    assert {package: said.get(package) for package in held} == held
    assert said.keys() == {*LAYERS, *STUDIES} - {"", "__main__"}


def test_files_that_the_page_names_exist() -> None:
    text = PAGE.partition("## Every file")[0]
    names = set(re.findall(r"`([\w/]+\.(?:py|yaml|md))`", text)) - {"manifest.json"}
    known = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.*") if ".venv" not in path.parts]
    for name in names - {"config.yaml", "overlay.yaml"}:
        assert any(f"/{path}".endswith(f"/{name}") for path in known), f"{name} is not there"
