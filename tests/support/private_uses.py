"""Where sources use what a dependency keeps to itself: private names, and modules that it does not document."""

import ast
import functools
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

UNDOCUMENTED = ("litdata.", "mlflow.store.", "lightning.pytorch.trainer.connectors.")
"""Modules of which no name is documented, with an underscore or without."""

DOCUMENTED = {"_exit"}
"""What only looks private: `os._exit`."""

STANDARD = {"builtins", "abc", "collections", "enum", "typing"}


def private_uses(root: Path) -> set[tuple[str, str]]:
    """(file below `root`, name) of every use of a dependency's private API in the package of that folder.

    A private name is an attribute of another object, an import, a text that is such a name (for `getattr`), or a
    name that a class shares with the private ones of a foreign base class, be it on purpose or not.
    """
    modules = [path for path in sorted(root.rglob("*.py")) if (path.parent / "__init__.py").is_file()]
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in modules}
    classes = (node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    own = {inner.name for node in classes for inner in node.body if isinstance(inner, ast.FunctionDef)}
    found = set()
    for path, tree in trees.items():
        pieces = {piece for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for piece in node.values}
        names = {name for node in set(ast.walk(tree)) - pieces for name in _named(node, own, root.name)}
        names |= _inherited(tree, ".".join((root.name, *path.relative_to(root).with_suffix("").parts)))
        found |= {(path.relative_to(root).as_posix(), name) for name in names}
    return found


def is_private(name: str) -> bool:
    return re.fullmatch(r"_[A-Za-z]\w*", name) is not None and name not in DOCUMENTED


def _named(node: ast.AST, own: set[str], package: str) -> Iterator[str]:
    match node:
        case ast.Attribute(value=ast.Name(id="self" | "cls")):
            return  # of the class itself or of its bases: see `_inherited`
        case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name):
            yield from [name] if is_private(name) else []
        case ast.Attribute(attr=name) | ast.Constant(value=str(name)):
            yield from [name] if is_private(name) and name not in own else []
        case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] != package:
            hidden = module.startswith(UNDOCUMENTED) or any(map(is_private, module.split(".")))
            yield from (alias.name for alias in names if hidden or is_private(alias.name))
        case ast.Import(names=names):
            yield from (alias.name for alias in names if any(map(is_private, alias.name.split("."))))


def _inherited(tree: ast.Module, module: str) -> set[str]:
    """Private names that the classes of a module share with their foreign base classes."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.bases]
    names = {node: _of_class(node) for node in classes}
    if not any(names.values()):
        return set()
    made = importlib.import_module(module)
    package = module.split(".")[0]
    return {
        name
        for node, mine in names.items()
        for base in getattr(made, node.name).__mro__[1:]
        if base.__module__.split(".")[0] not in STANDARD | {package}
        for name in mine & _of_base(base)
    }


def _of_class(node: ast.AST) -> frozenset[str]:
    """Private methods that a class defines and private attributes of `self` that it uses."""
    names = set()
    for inner in ast.walk(node):
        match inner:
            case ast.FunctionDef(name=name) | ast.Attribute(value=ast.Name(id="self"), attr=name) if is_private(name):
                names.add(name)
    return frozenset(names)


@functools.cache
def _of_base(base: type) -> frozenset[str]:
    try:
        inside = _of_class(ast.parse(textwrap.dedent(inspect.getsource(base))))
    except (OSError, TypeError):  # written in C
        inside = frozenset()
    return inside | set(filter(is_private, vars(base)))
