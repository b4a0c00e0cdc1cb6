"""What a later file or flag takes away from an earlier one: items of a list, and arguments of a class."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import yaml
from jsonargparse import Namespace

from lrtrain.config.settings import Setting, Settings

LISTS = ("trainer.callbacks", "trainer.logger", "trainer.plugins")


def one_of_a_kind(config: Namespace) -> None:
    """Leaves the last of several callbacks of one class of lrtrain, of which a run takes one."""
    given = config.trainer.callbacks
    if isinstance(given, list):
        last = {callback.class_path: index for index, callback in enumerate(given)}
        config.trainer.callbacks = [
            callback
            for index, callback in enumerate(given)
            if not callback.class_path.startswith("lrtrain.") or last[callback.class_path] == index
        ]


def overlaid(settings: Settings, config: Namespace) -> list[str]:
    """A line for each file or flag that took something away, or left something to another class, or had no effect."""
    found: dict[str, list[str]] = {}
    for origin, text in (*_lists(settings, config), *_classes(settings, config), *_variables(settings)):
        found.setdefault(origin, []).append(text.removeprefix(f"{origin.removeprefix('--')}: "))
    return [f"{origin}: {'; '.join(texts)}" for origin, texts in found.items()]


def _lists(settings: Settings, config: Namespace) -> Iterator[tuple[str, str]]:
    """Items that are gone, of the Trainer's lists of classes."""
    given = config.trainer.callbacks
    paths = [callback.class_path for callback in given] if isinstance(given, list) else []
    single = {path.rpartition(".")[2] for path in paths if path.startswith("lrtrain.")}
    there: dict[str, dict[str, str]] = {}  # list -> class in it -> origin
    for setting in settings:
        key, names = setting.path.rstrip("+"), _names(setting.value)
        if key not in LISTS:
            continue
        before = there.setdefault(key, {})
        again = [name for name in names if name in single and before.get(name, setting.origin) != setting.origin]
        gone = [name for name, origin in before.items() if origin != setting.origin and name not in names]
        if again and setting.path == "trainer.callbacks+":
            text = ", ".join(f"{name} takes the place of that of {before[name]}" for name in again)
            yield setting.origin, f"{key}: {text}"
        if setting.path == key:
            if gone:
                yield setting.origin, f"{key}: leaves out {', '.join(gone)}, which {key}+ would keep"
            before.clear()
        before.update(dict.fromkeys(names, setting.origin))


def _names(value: Any) -> list[str]:
    """The classes that a value of a list names, which is text where it is a flag's."""
    if isinstance(value, str):
        with suppress(yaml.YAMLError):
            value = yaml.safe_load(value)
    items = value if isinstance(value, list) else [value]
    paths = [item.get("class_path", "") if isinstance(item, dict) else item for item in items]
    return [path.rpartition(".")[2] for path in paths if isinstance(path, str) and path]


def _classes(settings: Settings, config: Namespace) -> Iterator[tuple[str, str]]:
    """Arguments of a class whose place another has taken: those that are gone, and those that it has now."""
    order: dict[str, int] = {}
    made: dict[str, str] = {}  # key -> class
    changed: dict[str, tuple[Setting, str]] = {}  # key -> by which setting, and the class before
    arguments: dict[str, dict[str, str]] = {}  # key -> argument -> origin
    for setting in settings:
        order.setdefault(setting.origin, len(order))
        path = setting.path.replace(".init_args", "")
        key, _, last = path.rpartition(".")
        if path in made and isinstance(setting.value, str):
            key, last = path, "class_path"
        if last == "class_path" and isinstance(setting.value, str):
            name = setting.value.rpartition(".")[2]
            if made.get(key, name) != name:
                changed[key] = setting, made[key]
            made[key] = name
        elif key in made:
            arguments.setdefault(key, {})[last] = setting.origin
    for key, (setting, old) in changed.items():
        now = _at(config, key)
        earlier = [name for name, origin in arguments.get(key, {}).items() if order[origin] < order[setting.origin]]
        if now is not None and earlier:
            stated = vars(now.get("init_args") or Namespace())
            gone = ", ".join(name for name in earlier if name not in stated)
            kept = ", ".join(f"{name} {stated[name]}" for name in earlier if name in stated)
            text = f"{key}: {now.class_path.rpartition('.')[2]} takes the place of {old}"
            yield setting.origin, text + (f", without {gone}" if gone else "") + (f", keeping {kept}" if kept else "")


def _variables(settings: Settings) -> Iterator[tuple[str, str]]:
    """Variables of the environment whose keys a file or a flag sets, which is stronger."""
    stronger = {setting.key.replace(".init_args", ""): setting for setting in settings if not setting.in_environment}
    for setting in settings:
        if setting.in_environment and (by := stronger.get(setting.key)):
            yield setting.origin, f"without effect, since {by.where.removesuffix(f': {by.path}')} sets {setting.key}"


def _at(config: Any, key: str) -> Any:
    """The class under a key without `init_args`; None where there is none."""
    for part in key.split("."):
        config = config.get("init_args", config) if isinstance(config, Namespace) else Namespace()
        config = config.get(part)
    return config if isinstance(config, Namespace) and "class_path" in config else None
