"""`lrtrain new`: writes a part of one's own, its YAML and its test, which run as they are."""

import importlib.util
import keyword
from pathlib import Path

from lrtrain.cli.arguments import Arguments
from lrtrain.config.recipes import shipped
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.hints import near

TEMPLATES = shipped("docs/templates")
"""A folder a kind; its files are called after `my_<kind>`, and so are their classes."""


def main(argv: list[str]) -> int:
    """Writes the files of a new part into the working directory and says what to run."""
    kinds = sorted(folder.name for folder in TEMPLATES.iterdir())
    parser = Arguments(
        prog="lrtrain new",
        description="Writes a part of your own into this folder: its file, YAML and test, which run as they are.",
        epilog="docs/extending.md explains each kind.",
    )
    parser.add_argument("kind", help=", ".join(kinds))
    parser.add_argument("name", help="of the module, as my_optimizer; the class is called MyOptimizer then")
    arguments = parser.parse_args(argv)
    if arguments.kind not in kinds:
        raise UserError(f"unknown kind {arguments.kind!r}: {near(arguments.kind, kinds, 'the kinds are')}")
    _check_name(arguments.name)
    files = _files(arguments.kind, arguments.name)
    if existing := [path.name for path in files if path.exists()]:
        raise UserError(f"{existing[0]} exists here: choose another name, or remove it")
    for path, content in files.items():
        path.write_text(content, encoding="utf-8")
    command = "experiment" if arguments.kind == "experiment" else "fit --config quickstart --config"
    print(f"wrote {', '.join(path.name for path in files)}")
    print(f"try   lrtrain {command} {arguments.name}.yaml")
    print(f"      pytest test_{arguments.name}.py")
    return 0


def _check_name(name: str) -> None:
    if not name.isidentifier() or keyword.iskeyword(name) or not name.islower():
        raise UserError(f"name {name!r}: give a module's name, small letters and underscores, as my_optimizer")
    found = importlib.util.find_spec(name)
    if found is not None and found.origin and Path(found.origin).parent != Path.cwd():
        raise UserError(f"name {name}: there is a module of that name, which would be found first: choose another")


def _files(kind: str, name: str) -> dict[Path, str]:
    """Path -> content of a kind's files under another name."""
    old, new = f"my_{kind}", "".join(part.capitalize() for part in name.split("_"))
    return {
        Path(file.name.replace(old, name)): file.read_text(encoding="utf-8")
        .replace(old, name)
        .replace(f"My{kind.capitalize()}", new)
        for file in sorted((TEMPLATES / kind).glob(f"*{old}.*"))
    }
