"""The configuration parser of `plan`: the keys of `fit` without Lightning, whose import takes longer than a plan."""

import ast
import contextlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace, set_parsing_settings
from omegaconf.errors import OmegaConfBaseException
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lrtrain.config.error_lines import one_line
from lrtrain.config.settings import ENV_PREFIX, option_names
from lrtrain.nn import Decoder
from lrtrain.optim import Optimizers
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.own_modules import find_own_modules

GROUPS = {
    "trainer": ("lightning", "pytorch/trainer/trainer.py", "Trainer"),
    "model": ("lrtrain", "training/causal_lm.py", "CausalLM"),
    "data": ("lrtrain", "data/datamodule.py", "TokenDataModule"),
    "checkpoints": ("lrtrain", "checkpoint/checkpoints.py", "Checkpoints"),
    "nonfinite": ("lrtrain", "training/callbacks/nonfinite.py", "NonFiniteGradients"),
}
"""Group of keys -> package, file and class whose arguments they are."""

OPAQUE: Any = dict | list | bool | int | float | str | None

TYPED: dict[str, Any] = {
    "model.decoder": Callable[[], Decoder],
    "model.optimizers": Optimizers,
    "model.schedule": Callable[[Optimizer, int], LRScheduler],
    "model.activation_checkpointing": bool,
    "trainer.callbacks": list[dict[str, Any]] | dict[str, Any] | None,
    "data.block_size": int,
    "data.batch_size": int,
    "trainer.num_nodes": int,
    "trainer.max_steps": int,
    "trainer.accumulate_grad_batches": int,
}
"""What a plan is made of. Every other key may hold anything: `fit` looks at its value."""


class PlanParser(ArgumentParser):
    """Raises a UserError of one line where argparse would print its usage."""

    argv: ClassVar[list[str]] = []
    options: ClassVar[list[str]] = []
    folder: ClassVar[str] = "."

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        # While a file is parsed, the working directory is the file's.
        with contextlib.chdir(self.folder):
            raise UserError(one_line(message, self.argv, self.options)) from ex


def parse(argv: list[str]) -> tuple[ArgumentParser, Namespace]:
    """The parser and the resolved configuration of files, overlays, flags and environment, as `fit` resolves them.

    Raises:
        UserError: a key that there is not, or a value of another type.
    """
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    find_own_modules(argv)
    PlanParser.argv, PlanParser.folder = argv, os.getcwd()
    parser = PlanParser(prog="lrtrain plan", parser_mode="omegaconf+", default_env=True, env_prefix=ENV_PREFIX)
    parser.add_argument("-c", "--config", action=ActionConfigFile)
    for key, default in (("seed_everything", 0), ("name", "run"), ("runs", "runs"), ("ckpt_path", None)):
        parser.add_argument(f"--{key}", type=type(default) if default is not None else Any, default=default)
    for group, place in GROUPS.items():
        for name, default in signature(*place).items():
            key = f"{group}.{name}"
            required = {"required": True} if key in ("model.decoder", "model.optimizers") else {"default": default}
            parser.add_argument(f"--{key}", type=TYPED.get(key, OPAQUE), **required)
    PlanParser.options = option_names(parser)
    try:
        return parser, parser.parse_args(argv)
    except (OmegaConfBaseException, UnicodeDecodeError) as error:
        text = str(error) if isinstance(error, OmegaConfBaseException) else f"Problems parsing config: {error}"
        parser.error(text, error)


def signature(package: str, file: str, name: str) -> dict[str, Any]:
    """Argument -> default, None where there is none or it is no literal, of a class's `__init__`, from its source."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    tree = ast.parse(Path(spec.submodule_search_locations[0], file).read_text(encoding="utf-8"))
    made = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    init = next(n for n in made.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    positional = init.args.args[1:]
    defaults = [None] * (len(positional) - len(init.args.defaults)) + list(init.args.defaults)
    found = [*zip(positional, defaults, strict=True), *zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)]
    return {argument.arg: _literal(default) for argument, default in found}


def _literal(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None
