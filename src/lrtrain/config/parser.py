"""The configuration parser of `fit`, `validate`, `test` and `plan`: where values come from, and how it refuses."""

import ast
import json
import os
import re
from enum import Enum
from typing import Any, ClassVar, NoReturn

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace, set_parsing_settings
from omegaconf.errors import OmegaConfBaseException

from lrtrain.config.error_lines import one_line
from lrtrain.config.overlaid import one_of_a_kind
from lrtrain.config.settings import ENV_PREFIX, OWN_VARIABLES, Settings, with_files
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.hints import near
from lrtrain.runtime.own_modules import find_own_modules

REFUSED = {
    "LearningRateFinder": "tries one rate, and here every optimizer has its own; search them with lrtrain sweep",
    "BatchSizeFinder": "trains with another batch than the configuration says; lrtrain plan --memory tells what fits",
    "GradientAccumulationScheduler": "makes other steps than a plan knows; set trainer.accumulate_grad_batches",
}
"""Callbacks of Lightning that make a run another one than its configuration says, or cannot work -> why, what to do."""


class Parser(ArgumentParser):
    """Raises a UserError of one line where argparse would print its usage.

    What the user set is the class's: the parsers of nested classes, which jsonargparse makes by itself, tell it too.
    """

    argv: ClassVar[list[str]] = []
    settings: ClassVar[Settings]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        names = [action.dest for action in self._actions if action.dest not in ("help", "print_shtab")]
        raise UserError(one_line(message, self.settings, names)) from ex

    def parse_args(self, args: Any = None, *rest: Any, **how: Any) -> Any:
        # To a class inside a class jsonargparse hands a value on as Python writes it: `--mlp.rank_ratio=None`.
        nested = args is not None and args is not self.argv
        return super().parse_args([_in_yaml(flag) for flag in args] if nested else args, *rest, **how)

    def _check_value_key(self, action: Any, value: Any, key: str, cfg: Any, append: bool = False) -> Any:
        # A class that takes another's place keeps the arguments that fit it, as jsonargparse finds by trying each: one
        # with a ${…}, which has no value yet, would not.
        try:
            return super()._check_value_key(action, value, key, cfg, append)
        except (TypeError, ValueError):
            if "${" not in repr(value):
                raise
            return value


def new_parser(command: str) -> Parser:
    """A parser of what every run has beside the arguments of its classes."""
    # Without the first, ${…} is resolved in each file alone, before overlays and the command line are known.
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True, config_read_mode_fsspec_enabled=True)
    yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, value: dumper.represent_data(value.value))
    parser = Parser(prog=f"lrtrain {command}", parser_mode="omegaconf+", default_env=True, env_prefix=ENV_PREFIX)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="A recipe, then overlays: the last one wins.")
    parser.add_argument("--name", type=str, default="run", help="Name of the run; it lives in <runs>/<name>.")
    parser.add_argument("--runs", type=str, default="runs", help="Folder of all runs and of the default tracker.")
    parser.add_argument(
        "--ckpt_path",
        type=str | None,
        default=None,
        help="Checkpoint to resume from or to evaluate: its path, or 'last' for the newest whole one of this name.",
    )
    parser.add_argument(
        "--init_from",
        type=str | None,
        default=None,
        help="Checkpoint whose weights a new run begins with, all else fresh: a .ckpt, a run directory, a folder of "
        "runs (its newest), or the URL of one of these. A run that is resumed goes on from its own checkpoint.",
    )
    parser.add_argument(
        "--seed_everything", type=int, default=0, help="Seed of the initial weights and of every random draw."
    )
    return parser


def read(parser: Parser, argv: list[str]) -> Namespace:
    """The resolved configuration of environment, files, overlays and flags, the later stronger than the earlier.

    Raises:
        UserError: a key that there is not, or a value of another type or out of range.
    """
    Parser.argv = with_files(argv)
    Parser.settings = Settings(Parser.argv)
    find_own_modules(Parser.argv)
    _check_environment(parser)
    try:
        config = parser.parse_args(Parser.argv)
    except OmegaConfBaseException as error:
        parser.error(str(error), error)
    except RecursionError as error:
        raise UserError("configuration: a value is nested too deep to be read") from error
    for key, value in config.items():
        if isinstance(value, int) and abs(value) >= 2**63:
            raise UserError(f"{Parser.settings.place(key.replace('.init_args', ''))}: {value} is out of range")
    one_of_a_kind(config)
    given = config.trainer.callbacks
    for path in [callback.class_path for callback in (given if isinstance(given, list) else [given]) if callback]:
        name = path.rpartition(".")[2]
        if path.startswith("lightning.") and name in REFUSED:
            raise UserError(f"trainer.callbacks: {name} {REFUSED[name]}")
    if not 0 <= config.seed_everything < 2**32:
        raise UserError(f"seed_everything is {config.seed_everything}: give 0 to {2**32 - 1}")
    return config


def _check_environment(parser: Parser) -> None:
    """Raises UserError for a variable with our prefix that nobody reads."""
    keys = [action.dest for action in parser._actions if not re.search(r"\bhelp$|^print_", action.dest)]
    known = {f"{ENV_PREFIX}_{key.upper().replace('.', '__')}" for key in keys}
    single = [name for name in known if not any(other.startswith(f"{name}__") for other in known)]
    for variable in os.environ:
        if variable.startswith(f"{ENV_PREFIX}_") and variable not in known.union(OWN_VARIABLES):
            whole = next((name for name in single if variable.startswith(f"{name}__")), None)
            hint = f"{whole} takes the whole value in YAML" if whole else near(variable.upper(), sorted(single))
            raise UserError(f"{variable}: unknown variable; {hint}")


def _in_yaml(flag: str) -> str:
    name, equals, text = flag.partition("=")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return flag
    return f"{name}{equals}{json.dumps(value)}" if value is None or isinstance(value, list | dict) else flag
