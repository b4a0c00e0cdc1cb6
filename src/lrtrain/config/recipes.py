"""The YAML files that come with the package, by name from any folder: recipes, overlays, studies."""

from pathlib import Path

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.hints import near

KINDS = {
    "": "recipe or overlay",
    "experiments": "experiment",
    "sweeps": "search space",
    "scaling_laws": "isoFLOP grid",
    "tasks": "task of lm-eval",
}
"""Folder below `configs/` -> what its files are; `""` for those that `--config` takes."""


def folder(kind: str = "") -> Path:
    """The shipped folder of a kind: inside an installed package, beside `src/` in the repository."""
    return shipped("configs") / kind


def shipped(folder: str) -> Path:
    """A folder of the repository, which a wheel carries inside the package under its last name (setup.py)."""
    package = Path(__file__).parents[1]
    installed = package / Path(folder).name
    return installed if installed.is_dir() else package.parents[1] / folder


def names(kind: str = "") -> list[str]:
    """The names of all shipped files of a kind: `quickstart`, `methods/adamw`."""
    root = folder(kind)
    found = sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    return [name for name in found if kind or name.partition("/")[0] not in KINDS]


def find(kind: str, name: str | Path) -> Path:
    """The file that a name means: one of that path, or else the shipped one of the kind, with or without `.yaml`.

    Raises:
        UserError: there is neither; the line names the nearest that there are.
    """
    given = Path(name)
    plain = given.as_posix().removesuffix(".yaml").removeprefix("configs/").removeprefix(f"{kind}/")
    known = names(kind)
    if given.exists() and not (given.is_dir() and plain in known):
        return given
    if plain in known:
        return folder(kind) / f"{plain}.yaml"
    same = [one for one in known if Path(one).name == plain]
    hint = near(plain, same or known)
    if given.suffix and not hint.startswith("did you mean"):
        raise UserError(f"configuration file {name} does not exist: check the path")
    raise UserError(f"{name} is neither a file nor a shipped {KINDS[kind]}: {hint}")
