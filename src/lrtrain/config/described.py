"""Every key of a configuration with its type, value and meaning, those of the classes that it names too."""

import dataclasses
import os
import pydoc
import re
import textwrap
from argparse import Action
from collections.abc import Iterator
from typing import Any, get_args

import yaml
from jsonargparse import ArgumentParser, Namespace

from lrtrain.config.parser import read
from lrtrain.config.recipes import find
from lrtrain.config.settings import ENV_PREFIX, config_files
from lrtrain.config.train_parser import GROUPS, train_parser
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.hints import near

Options = dict[str, Action]


def describe(command: str, argv: list[str], topic: str) -> str:
    """The keys that have a topic among their parts, all for `all`, with the values of a command line.

    Raises:
        UserError: no key has it, or the command line is wrong.
    """
    stated = config_files(argv) or f"{ENV_PREFIX}_CONFIG" in os.environ
    argv = argv if stated else ["--config", str(find("", "quickstart")), *argv]
    parser = train_parser(command, argv)
    config = read(parser, argv)
    config.pop("config", None)
    keys = list(_keys({action.dest: action for action in parser._actions}, config))
    chosen = [text for name, text in keys if topic == "all" or f".{topic}." in f".{name}."]
    if not chosen:
        parts = dict.fromkeys([*GROUPS, *(part for name, _ in keys for part in name.split("."))])
        raise UserError(f"--help {topic}: no key has this part; {near(topic, parts)}")
    note = [] if stated else ["Values of the recipe quickstart; name yours with --config.\n"]
    return "\n".join([*note, *chosen])


def _keys(options: Options, values: Namespace, above: str = "", within: str = "") -> Iterator[tuple[str, str]]:
    """Keys below `above`, each with its text; `within` is what leads to `values` in the names of the options."""
    for part, value in vars(values).items():
        name, option = f"{above}{part}", options.get(f"{within}{part}")
        several = value if isinstance(value, dict | list) else [value]
        items = several.items() if isinstance(several, dict) else [("", one) for one in several]
        classes = [(key, one) for key, one in items if isinstance(one, Namespace) and "class_path" in one]
        made = [(f"{name}.{key}.".replace("..", "."), one) for key, one in classes]
        if made:
            paths = [one.class_path for _, one in made]
            yield name, _text(name, option, paths if isinstance(value, list | dict) else paths[0])
            for at, one in made:
                yield from _keys(_arguments(one.class_path), one.get("init_args") or Namespace(), at)
        elif isinstance(value, Namespace):
            hint = getattr(option, "_typehint", None)
            fields = next((kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind)), None)
            inner, inside = (_arguments(fields), "") if fields else (options, f"{within}{part}.")
            yield from _keys(inner, value, f"{name}.", inside)
        else:
            yield name, _text(name, option, value)


def _text(name: str, option: Action | None, value: Any) -> str:
    """`--name (type) = value` and the meaning below."""
    hint = getattr(option, "_typehint", None)
    written = hint.__name__ if isinstance(hint, type) else re.sub(r"\b[a-z_]\w*\.", "", str(hint))
    kind = re.sub(r"\bNone(Type)?\b", "null", f" ({written})") if hint else ""
    shown = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
    meaning = " ".join(re.sub(r":\w+:(?=`)|``", "", getattr(option, "help", None) or "").split())
    wrapped = textwrap.wrap(meaning, 94, initial_indent="      ", subsequent_indent="      ")
    return "\n".join([f"--{name}{kind} = {shown}", *wrapped])


def _arguments(kind: Any) -> Options:
    """Name -> argument of a class or of the function that makes one."""
    made: Any = pydoc.locate(kind) if isinstance(kind, str) else kind
    parser = ArgumentParser(exit_on_error=False)
    add = parser.add_class_arguments if isinstance(made, type) else parser.add_function_arguments
    add(made, fail_untyped=False)
    return {action.dest: action for action in parser._actions}
