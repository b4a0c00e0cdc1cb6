"""The recipe that a run is a variation of: the first file of its command line, and which keys were set beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lrtrain.config.recipes import folder
from lrtrain.config.settings import Setting, Settings
from lrtrain.tracking.names import flatten

BASE = "base_recipe.json"
"""The text of a run's record that `base_recipe` makes."""


def base_recipe(settings: Settings) -> str:
    """JSON of the first configuration file as it is now: its name, its keys with their values, and the keys that other
    files, flags and variables set, each with where. Without a file the name is empty.

    With the run's configuration it tells how the run differs from the recipe, whatever becomes of the file.
    """
    files = [one.origin for one in settings if not one.origin.startswith("--") and not one.in_environment]
    base = files[0] if files else None
    found = {
        **_recipe(base),
        "set": {one.key: one.origin for one in settings if one.origin != base and _is_leaf(one)},
    }
    return json.dumps(found, ensure_ascii=False)


def _recipe(file: str | None) -> dict[str, Any]:
    if file is None:
        return {"name": "", "shipped": False, "values": {}}
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except OmegaConfBaseException:  # a ${…} that only another file gives a value
        content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    where, shipped = Path(file).resolve(), folder().resolve()
    ours = where.is_relative_to(shipped)
    name = where.relative_to(shipped).with_suffix("").as_posix() if ours else file
    return {"name": name, "shipped": ours, "values": flatten(content)}


def _is_leaf(setting: Setting) -> bool:
    """Not a mapping, whose keys are settings of their own, and not inside a list, which is one value."""
    return not isinstance(setting.value, dict) and "[" not in setting.key


def differences(base: Mapping[str, Any], params: Mapping[str, str]) -> list[tuple[str, str, str, str]]:
    """(key, value in the recipe, value in the run, where it was set) of each key whose values differ.

    Args:
        base: What `base_recipe` wrote.
        params: The run's flattened configuration.

    A key that the recipe leaves out has the default there, and one that is not in the run, as after another class took
    the place of its own, is `–`. One that was set nowhere follows another key, through a `${…}` of the recipe.
    """
    there = {_short(key): value for key, value in base["values"].items()}
    here = {_short(key): value for key, value in params.items()}
    origins = {_short(key): origin for key, origin in base["set"].items()}
    set_here = {key for key in here if _above(key, origins) is not None}
    found = []
    for key in sorted({*there, *set_here}):
        mapping = any(other.startswith(f"{key}.") for other in there)
        before, now, above = there.get(key, "–" if mapping else "default"), here.get(key, "–"), _above(key, origins)
        if not _same(before, now):
            gone = "its class is another one" if now == "–" else "follows another key"
            found.append((key, before, now, gone if above is None else origins[above]))
    return found


def _short(key: str) -> str:
    """A key as the command line takes it."""
    return key.replace(".init_args.", ".").removesuffix(".init_args")


def _above(key: str, origins: Mapping[str, str]) -> str | None:
    """The key itself, or the nearest above it, that was set."""
    while key and key not in origins:
        key = key.rpartition(".")[0]
    return key or None


def _same(one: str, other: str) -> bool:
    try:
        return one == other or float(one) == float(other)
    except ValueError:
        return False
