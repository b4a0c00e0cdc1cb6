"""The optimizers and the schedules that `lrtrain.optim` defines, found by walking the package."""

import importlib
import inspect
import pkgutil

import lrtrain.optim


def classes(base: type) -> list[type]:
    """The concrete subclasses of a base that `lrtrain.optim` defines, in whatever file."""
    found = set()
    for module in pkgutil.walk_packages(lrtrain.optim.__path__, "lrtrain.optim."):
        members = vars(importlib.import_module(module.name)).items()
        found |= {c for name, c in members if inspect.isclass(c) and issubclass(c, base) and not inspect.isabstract(c)}
    return sorted((c for c in found if c.__module__.startswith("lrtrain.")), key=lambda c: c.__name__)
