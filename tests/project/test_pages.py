"""What README and the pages of docs/ show works: commands, YAML, code, links.

docs/library.md and docs/extending.md run from their first block to their last in tests of their own; the links of the
site, anchors among them, are test_site.py's. docs/log.md and CHANGELOG.md are history, so their commands are too.
"""

import functools
import io
import re
import shlex
import subprocess
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml

from lrtrain.cli.main import COMMANDS, main
from lrtrain.config.plan_parser import parse
from lrtrain.config.recipes import names
from lrtrain.studies.experiments.experiment_file import load
from lrtrain.studies.sweep.space import read_space

ROOT = Path(__file__).parents[2]
HISTORY = ("docs/log.md", "CHANGELOG.md")
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if path.relative_to(ROOT).as_posix() not in HISTORY
]
CONFIGURED = ("fit", "validate", "test")
"""Commands whose options are the configuration's keys."""

TAKING_KEYS = ("plan", "doctor", "profile", "sweep", "scaling")
"""Commands that take them beside options of their own."""

GROUPS = tuple(
    f"--{key}"
    for key in (
        *("config", "name", "runs", "ckpt_path", "init_from", "seed_everything"),
        *("trainer", "model", "data", "checkpoints", "nonfinite", "heartbeat", "export"),
    )
)

ALONE = ("--print_config", "--print-model")
"""Flags of `fit` that are no keys: with them it prints, and ends."""

OTHERS = ("torchrun", "mlflow", "pip", "sbatch", "scancel", "sky", "docker", "kubectl", "make", "pytest", "python")
"""What begins a command line of others."""

OF_OTHERS = {"--build-arg", "--outtype"}
"""Options of others that stand alone in the prose: docker's, and of llama.cpp's converter."""


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, *languages: str) -> list[str]:
    """The code blocks of a page in one of the languages."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text_of(page), re.S | re.M)
    return [content for language, content in found if language in languages]


def shown(page: str) -> list[list[str]]:
    """The arguments of each `lrtrain` command in code blocks and in code within a line."""
    lines = "\n".join(blocks(page, "bash", "sh")).replace("\\\n", " ").splitlines()
    prose = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.S | re.M)
    lines += re.findall(r"`([^`]*\blrtrain [a-z][^`]*)`", prose)
    found = []
    for line in lines:
        for command in re.findall(r"(?<![\w/.-])lrtrain ((?:'[^']*'|[^'|;>&])*)", line):
            words = shlex.split(command, comments=True)
            if words and words[0] in COMMANDS:
                found.append(words)
    return found


@functools.cache
def options_of(command: str) -> frozenset[str]:
    """What the command's own help lists; that of its parts too, where it has some."""
    told = io.StringIO()
    with pytest.raises(SystemExit), redirect_stdout(told):
        main([*command.split(), "--help"])
    parts = re.search(r"\{([a-z,]+)\}", told.getvalue()) if " " not in command else None
    names_here = frozenset(re.findall(r"--[a-z][\w-]*", told.getvalue()))
    return names_here.union(*(options_of(f"{command} {part}") for part in (parts[1].split(",") if parts else [])))


def with_a_recipe(arguments: list[str]) -> list[str]:
    """The arguments, with a shipped recipe in the place of none or of a reader's own, without what is open."""
    kept, waiting = [], iter(argument for argument in arguments if argument not in ("…", "..."))
    for argument in waiting:
        value = next(waiting, "") if argument == "--config" else ""
        there = value in names() or (ROOT / value).is_file()
        kept += [argument] if argument != "--config" else ["--config", value if there else "quickstart"]
    kept += [] if "--config" in kept else ["--config", "quickstart"]
    return [argument.replace("$seed", "0") for argument in kept if argument not in ALONE]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_lrtrain_takes(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for command, *arguments in shown(page):
        if command in CONFIGURED:
            if "--help" not in arguments:
                parse(with_a_recipe(arguments))
            continue  # it refuses an unknown key, and a value of another type
        given = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
        keys = {flag for flag in given - options_of(command) if command in TAKING_KEYS and flag.split(".")[0] in GROUPS}
        assert given - options_of(command) - keys == set(), (command, arguments)


@pytest.mark.parametrize("page", PAGES)
def test_every_option_that_a_page_names_is_one_of_some_command(page: str) -> None:
    prose = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.S | re.M)
    ours = [code for code in re.findall(r"`([^`]+)`", prose) if not code.startswith(OTHERS)]
    named = {name for code in ours for name in re.findall(r"(?<![\w-])--[a-z][\w-]*", code)}
    known = set(GROUPS).union(*(options_of(command) for command in COMMANDS if command not in CONFIGURED))
    known |= {
        name
        for file in (ROOT / "benchmarks").glob("*.py")
        for name in re.findall(r'"(--[a-z][\w-]*)"', file.read_text())
    }
    assert named - known - {*ALONE, "--help-all"} - OF_OTHERS == set()


def test_pages_show_commands() -> None:
    assert sum(len(shown(page)) for page in PAGES) > 100
    assert {command for page in PAGES for command, *_ in shown(page)} >= {*COMMANDS} - {"test"}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash", "sh")])
def test_every_shell_block_is_one(page: str) -> None:
    for block in blocks(page, "bash", "sh"):
        done = subprocess.run(["bash", "-n", "-c", block], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}\n{done.stderr}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_every_python_block_is_python(page: str) -> None:
    for number, block in enumerate(blocks(page, "python"), start=1):
        compile(block, f"{page}, block {number}", "exec")


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "yaml") and p != "docs/extending.md"])
def test_every_yaml_block_is_what_its_command_takes(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(page, "yaml"):
        content = yaml.safe_load(re.sub(r"!\w+ ", "", block))  # lm-eval's tag for a function
        file = tmp_path / "shown.yaml"
        file.write_text(block, encoding="utf-8")
        if "parameters" in content:
            read_space(file)
        elif "variants" in content:
            for overlay in re.findall(r"\b(my_\w+\.yaml)\b", block):
                (tmp_path / overlay).write_text("{}\n")
            load(file)
        elif "task" in content:
            assert content["output_type"]  # a task of lm-eval: tests/studies/evaluation/
        else:
            parse(["--config", "quickstart", "--config", str(file)])


@pytest.mark.parametrize("page", [*PAGES, *HISTORY])
def test_links_lead_to_files(page: str) -> None:
    generated = re.compile(r"(?:\.\./)*((?:docs/)?reference/[\w/]+|contributing|changelog|notebooks)\.md")
    figures = re.compile(r"\.\./figures/\w+\.svg")
    for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", text_of(page)):
        if not generated.fullmatch(link) and not figures.fullmatch(link):
            assert (ROOT / page).parent.joinpath(link).is_file(), link


def test_readme_is_read_in_three_minutes() -> None:
    readme = text_of("README.md")
    assert len(readme.splitlines()) <= 150
    assert len(readme.split()) <= 1000


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_every_file_that_an_entrance_names_exists(page: str) -> None:
    for path in re.findall(r"(?:configs|docs|deploy)/[\w./-]+\.(?:ya?ml|md|png|sbatch)", text_of(page)):
        assert (ROOT / path).is_file(), path
