"""Imports go one way, and the library parts need torch alone."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lrtrain
from lrtrain.cli.main import COMMANDS

ROOT = Path(lrtrain.__file__).parent
MODULES = {
    ".".join(("lrtrain", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}

LAYERS = {
    "runtime": set(),
    "linalg": set(),
    "nn": {"linalg"},
    "optim": {"linalg"},
    "constraints": {"linalg", "optim"},
    "data": {"runtime"},
    "tracking": {"runtime"},
    "checkpoint": {"runtime"},
    "checkpoint/huggingface": {"checkpoint", "linalg", "nn", "data", "runtime"},
    "training": {"linalg", "nn", "optim", "constraints", "checkpoint", "runtime"},
    "config": {"nn", "optim", "data", "tracking", "checkpoint", "checkpoint/huggingface", "training", "runtime"},
    "studies": {"linalg", "nn", "optim", "constraints", "data", "tracking", "config", "runtime"},
    "studies/evaluation": {"nn", "data", "tracking", "training", "config", "runtime"},
    "studies/profile": {"nn", "tracking", "training", "config", "studies", "runtime"},
    "cli": {
        "nn",
        "data",
        "tracking",
        "checkpoint",
        "training",
        "config",
        "studies",
        "studies/evaluation",
        "studies/profile",
        "runtime",
        "",
    },
    "__main__": {"cli"},
    "": set(),
}
"""What each package may import of lrtrain beside itself, `""` being the version in `lrtrain/__init__.py`."""

STUDIES = {
    "jobs": set(),
    "pages": set(),
    "compare": {"pages"},
    "report": {"pages", "compare"},
    "plan": set(),
    "doctor": {"plan"},
    "sweep": {"jobs"},
    "scaling": {"jobs"},
    "experiments": {"jobs", "pages", "compare", "plan", "scaling"},
}
"""What each study may import of the others."""

TORCH_ALONE = ("linalg", "nn", "optim", "constraints", "training.telemetry")
LIGHTNING = (
    "training",
    "checkpoint",
    "data.datamodule",
    "data.run_length",
    "tracking.history",
    "tracking.logger",
    "tracking.run_record",
    "config",
    "studies.evaluation.during_training",
    "studies.profile",
    "cli",
    "runtime.ranks",
)
HEAVY = {
    "torch",
    "lightning",
    "torchmetrics",
    "mlflow",
    "litdata",
    "transformers",
    "lm_eval",
    "datasets",
    "tokenizers",
    "pyarrow",
    "matplotlib",
}


def imports(module: str, top_level: bool = False) -> Iterator[str]:
    """Dotted names of what a module imports, `a.b` where `from a import b` names a submodule b."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in _executed_on_import(tree) if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            assert node.module is not None
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else node.module


def _executed_on_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not typing_only:
            yield child
            yield from _executed_on_import(child)


def package(module: str) -> str:
    """`nn` of `lrtrain.nn.decoder`; a folder in a package that has rights of its own is one, too."""
    first, second = f"{module}...".split(".")[1:3]
    return f"{first}/{second}" if f"{first}/{second}" in LAYERS else first


def study(module: str) -> str:
    """`jobs` of `lrtrain.studies.jobs.launch`, empty outside the studies."""
    return f"{module}...".split(".")[2] if package(module) == "studies" else ""


def within(module: str, names: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(f"lrtrain.{name}.") for name in names)


def test_the_sources_are_found() -> None:
    assert {
        "lrtrain",
        "lrtrain.nn.decoder",
        "lrtrain.linalg.polar",
        "lrtrain.training.callbacks.spectral_constraints",
    } <= set(MODULES)
    assert "lrtrain.linalg" in set(imports("lrtrain.nn.lowrank"))
    assert "lightning" in set(imports("lrtrain.training.causal_lm"))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_lies_below_its_package(module: str) -> None:
    ours = [name for name in imports(module) if name.split(".")[0] == "lrtrain"]
    own = package(module)
    assert {package(name) for name in ours} <= LAYERS[own] | {own}
    others = {study(name) for name in ours} - {"", study(module)}
    assert not study(module) or others <= STUDIES[study(module)]


def test_no_two_packages_import_each_other() -> None:
    for layers in (LAYERS, STUDIES):
        left = dict(layers)
        while left:
            ground = {name for name, below in left.items() if not below & left.keys() - {name}}
            assert ground, f"a circle among {sorted(left)}"
            left = {name: below for name, below in left.items() if name not in ground}


def test_a_newcomer_finds_few_rooms_and_no_two_files_of_one_name() -> None:
    entries = [path for path in ROOT.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 14
    assert {path.name for path in entries if path.is_dir()} == {name for name in LAYERS if name.isalpha()}
    stems = [path.stem for path in MODULES.values() if path.stem != "__init__"]
    assert {stem for stem in stems if stems.count(stem) > 1} == set()


@pytest.mark.parametrize("module", [m for m in MODULES if within(m, TORCH_ALONE)])
def test_the_library_needs_torch_alone(module: str) -> None:
    foreign = {name.split(".")[0] for name in imports(module)} - set(sys.stdlib_module_names) - {"lrtrain"}
    assert foreign <= {"torch"}


def test_only_the_edge_imports_lightning() -> None:
    users = {module for module in MODULES if any(name.split(".")[0] == "lightning" for name in imports(module))}
    assert {module for module in users if not within(module, LIGHTNING)} == set()


@pytest.mark.parametrize(
    "module", ["lrtrain.__main__", *sorted({place.split(":")[0] for place, _ in COMMANDS.values()})]
)
def test_a_command_starts_without_heavy_packages(module: str) -> None:
    pending, seen = [module], set()
    while pending:
        current = pending.pop()
        if current not in seen:
            seen.add(current)
            names = set(imports(current, top_level=True))
            assert not {name.split(".")[0] for name in names} & HEAVY, f"{current} at the top"
            pending += [name for name in names if name in MODULES]


def test_there_is_no_cycle_of_modules_that_import_each_other_at_the_top() -> None:
    below = {m: {name for name in imports(m, top_level=True) if name in MODULES} - {m} for m in MODULES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for name in sorted(below[module]):
                visit(name, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_importing_the_library_loads_neither_lightning_nor_a_tracker() -> None:
    foreign = {"lightning", "pytorch_lightning", "torchmetrics", "mlflow", "litdata", "transformers", "matplotlib"}
    program = (
        "import sys, lrtrain.linalg, lrtrain.nn, lrtrain.optim, lrtrain.constraints, lrtrain.training.telemetry; "
        f"print(*sorted({foreign} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
