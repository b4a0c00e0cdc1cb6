"""The configuration parser of `plan`: the keys of `fit` without Lightning, whose import takes longer than a plan."""

import ast
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

from jsonargparse import Namespace
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lrtrain.config.own_data import add_own_data
from lrtrain.config.parser import Parser, new_parser, read
from lrtrain.config.settings import Settings, with_files
from lrtrain.nn import Decoder, LossCallable
from lrtrain.optim import Optimizers

GROUPS = {
    "trainer": ("lightning", "pytorch/trainer/trainer.py", "Trainer"),
    "model": ("lrtrain", "training/causal_lm.py", "CausalLM"),
    "data": ("lrtrain", "data/datamodule.py", "TokenDataModule"),
    "checkpoints": ("lrtrain", "checkpoint/checkpoints.py", "Checkpoints"),
    "nonfinite": ("lrtrain", "training/callbacks/nonfinite.py", "NonFiniteGradients"),
    "heartbeat": ("lrtrain", "training/callbacks/heartbeat.py", "Heartbeat"),
    "export": ("lrtrain", "config/export_settings.py", "Export"),
}
"""Group of keys -> package, file and class whose arguments they are."""

OPAQUE: Any = dict | list | bool | int | float | str | None

TYPED: dict[str, Any] = {
    "model.decoder": Callable[[], Decoder],
    "model.optimizers": Optimizers,
    "model.schedule": Callable[[Optimizer, int], LRScheduler],
    "model.loss": LossCallable | None,
    "model.activation_checkpointing": bool,
    "data.block_size": int,
    "data.batch_size": int,
    "trainer.devices": list[int] | str | int,
    "trainer.num_nodes": int,
    "trainer.max_steps": int,
    "trainer.accumulate_grad_batches": int,
}
"""What a plan is made of. Every other key may hold anything: `fit` looks at its value."""

CLASSES = ("trainer.callbacks", "trainer.strategy")
"""What a plan is made of, too, where it is stated: classes of Lightning, which is imported then."""


def parse(argv: list[str]) -> tuple[Parser, Namespace]:
    """The parser and the resolved configuration of files, overlays, flags and environment, as `fit` resolves them.

    Raises:
        UserError: a key that there is not, or a value of another type.
    """
    parser = new_parser("plan")
    own_data = add_own_data(parser, argv)
    types = TYPED | _stated_classes(argv)
    for group, place in GROUPS.items():
        if own_data and group == "data":
            continue
        for name, default in signature(*place).items():
            key = f"{group}.{name}"
            required = {"required": True} if key in ("model.decoder", "model.optimizers") else {"default": default}
            parser.add_argument(f"--{key}", type=types.get(key, OPAQUE), **required)
    return parser, read(parser, argv)


def _stated_classes(argv: list[str]) -> dict[str, Any]:
    paths = {setting.path for setting in Settings(with_files(argv))}
    stated = [key for key in CLASSES if any(re.match(rf"{key}\b", path) for path in paths)]
    if not stated:
        return {}
    from lightning import Trainer

    hints = get_type_hints(Trainer.__init__)
    return {key: hints[key.removeprefix("trainer.")] for key in stated}


def signature(package: str, file: str, name: str) -> dict[str, Any]:
    """Argument -> default, None where there is none or it is no literal, of a class's `__init__`, from its source."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    tree = ast.parse(Path(spec.submodule_search_locations[0], file).read_text(encoding="utf-8"))
    made = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    init = next(n for n in made.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    arguments = [*init.args.args[1:], *init.args.kwonlyargs]
    stated = [*init.args.defaults, *init.args.kw_defaults]
    defaults = [*[None] * (len(arguments) - len(stated)), *stated]
    return {argument.arg: _literal(default) for argument, default in zip(arguments, defaults, strict=True)}


def _literal(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None
