"""The configuration reference: every field of every class that a YAML can name, from the code."""

import pydoc
import re
from argparse import SUPPRESS
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from fields import Field, fields_of, in_words, introduction, plain, table
from lightning import Callback, Trainer
from lightning.pytorch.strategies import Strategy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from units import unit_of

import lrtrain.constraints
import lrtrain.data
import lrtrain.nn
import lrtrain.optim
import lrtrain.training
from lrtrain.config.parser import new_parser
from lrtrain.config.recipes import folder, names
from lrtrain.config.train_parser import GROUPS
from lrtrain.constraints import Constraint
from lrtrain.nn import Decoder, LinearCallable, LossCallable, Projection, RopeScaling
from lrtrain.optim import CombinedOptimizer, OptimizerCallable, Optimizers
from lrtrain.studies.evaluation import Evaluation
from lrtrain.studies.experiments import definition as experiment
from lrtrain.studies.scaling.grid import Grid
from lrtrain.studies.sweep.parameter import Parameter
from lrtrain.studies.sweep.space import Space
from lrtrain.tracking.logger import MLflowLogger
from lrtrain.training.causal_lm import CausalLM, DecoderCallable, ScheduleCallable

LINKS = {
    LinearCallable: "[projection](classes.md#projections)",
    OptimizerCallable: "[optimizer](classes.md#optimizers)",
    DecoderCallable: "[decoder](#modeldecoder)",
    ScheduleCallable: "[schedule](classes.md#schedules)",
    LossCallable: "[loss](../extending.md#a-loss)",
    Optimizers: "[optimizers](#modeloptimizers)",
    lrtrain.data.PrepareSpec: "[what to prepare](#dataprepare)",
    lrtrain.data.Weighted: "[weighted data sets](#datamix)",
    RopeScaling: "[scaling](#modeldecoderrope_scaling)",
    Constraint: "[constraints](classes.md#constraints)",
    experiment.Scale: "[scale](#a-scale)",
    experiment.Variant: "[variants](#a-variant)",
    experiment.Drawing: "[pictures](#a-picture)",
    experiment.Check: "[checks](#a-check)",
    experiment.Axis: "[axes](#an-axis)",
    Parameter: "[parameters](#a-parameter)",
}
"""Types with a section of their own -> that section."""

GIVEN = ("in_features", "out_features", "params", "optimizer", "total_steps", "_", "run_dir")
"""Arguments that the code gives to a class, so that no YAML does."""


def section(
    title: str, made: type, more: str = "", level: int = 2, units: bool = True, without: tuple[str, ...] = ()
) -> str:
    """A heading, what the class is, and the table of its fields."""
    rows = fields_of(made, LINKS, (*GIVEN, *without), units)
    parts = [f"{'#' * level} {title}", more, introduction(made) if units else "", table(rows, units) if rows else ""]
    return "\n\n".join(filter(None, parts)) if rows else "\n\n".join([*filter(None, parts), "No arguments."])


def public(package: Any, kind: type, but: tuple[type, ...] = ()) -> list[type]:
    """The classes of a package's `__all__` that are of a kind."""
    found = [getattr(package, name) for name in package.__all__]
    return [one for one in found if isinstance(one, type) and issubclass(one, kind) and one not in (kind, *but)]


@cache
def shipped_classes() -> list[str]:
    """Class paths that the shipped YAML files name."""
    files = [folder() / f"{name}.yaml" for name in names()]
    paths = re.findall(r"class_path: ([\w.]+)", "\n".join(file.read_text(encoding="utf-8") for file in files))
    return sorted(set(paths))


def of_others(kind: type) -> list[type]:
    """The classes of a kind that shipped files name and that are not lrtrain's."""
    found: list[Any] = [pydoc.locate(path) for path in shipped_classes() if not path.startswith("lrtrain.")]
    return [one for one in found if issubclass(one, kind)]


def run_keys() -> str:
    """The keys beside the groups."""
    rows = []
    for action in new_parser("fit")._actions:
        if action.help and action.help is not SUPPRESS and action.dest not in ("help", "print_shtab"):
            hint = getattr(action, "_typehint", None)
            kind = in_words(hint, LINKS) if hint else "path" if action.dest == "config" else ""
            default = "" if action.dest == "config" else f"`{'null' if action.default is None else action.default}`"
            if not action.dest.startswith("print"):
                unit = unit_of("", action.dest) or ""
                rows.append(Field(action.dest, kind, unit, default, plain(action.help)))
    return table(rows)


def configuration() -> str:
    """The page of the keys of a recipe."""
    groups = {name: kind for name, kind in GROUPS.items() if name not in ("trainer", "model")}
    return "\n\n".join(
        [
            "# Configuration",
            "Every key of a recipe, of an overlay and of the command line of `lrtrain fit`, `validate` and `test`. "
            "[How values come together](../guides/settings.md) is a page of its own; "
            "`lrtrain fit --config RECIPE --help TOPIC` prints these texts with the recipe's own values. The page is "
            "made from the code.\n\n"
            "A key whose type is a class (projection, optimizer, …) takes `class_path` and `init_args`: "
            "[the classes](classes.md) that come with lrtrain, or [your own](../extending.md).",
            "## Beside the groups",
            run_keys(),
            "## trainer",
            "The arguments of Lightning's `Trainer`: [a page of their own](trainer.md).",
            section("model", CausalLM),
            section("model.decoder", Decoder, "`class_path: lrtrain.nn.Decoder`, or a subclass of it.", 3),
            section("model.decoder.rope_scaling", RopeScaling, level=3),
            section("model.optimizers", Optimizers, level=3),
            *(
                section(name, kind, level=2)
                + (
                    "\n\n"
                    + section("data.prepare", lrtrain.data.PrepareSpec, level=3)
                    + "\n\n"
                    + section("data.mix", lrtrain.data.Weighted, level=3)
                    if name == "data"
                    else ""
                )
                for name, kind in groups.items()
            ),
        ]
    )


def kinds() -> Iterator[tuple[str, str, list[type]]]:
    """Heading, text and classes of each kind that a YAML names by its class path."""
    yield (
        "Projections",
        "Under `model.decoder.init_args.attention`, `mlp` and `overrides`. The code gives each its two widths.",
        public(lrtrain.nn, Projection, (lrtrain.nn.FactorizedProjection,)),
    )
    yield (
        "Optimizers",
        "Under `model.optimizers`: `hidden`, `other`, `overrides`. The code gives each its parameters. Any "
        "`torch.optim.Optimizer` may stand there; those of torch's that shipped recipes name are here, too.",
        [*public(lrtrain.optim, Optimizer, (CombinedOptimizer,)), *of_others(Optimizer)],
    )
    yield (
        "Schedules",
        "Under `model.schedule`. The code gives each the optimizer and the number of steps.",
        public(lrtrain.optim, LRScheduler),
    )
    yield (
        "Constraints",
        "Under `constraints` of [`SpectralConstraints`](#lrtraintrainingspectralconstraints).",
        public(lrtrain.constraints, Constraint),
    )
    yield (
        "Callbacks",
        "Under `trainer.callbacks`, or `trainer.callbacks+`, which adds to what other files name. Those that a recipe "
        "needs are there by themselves; naming one changes it.",
        [*[c for c in public(lrtrain.training, Callback) if c not in GROUPS.values()], Evaluation],
    )
    yield (
        "Strategies",
        "Under `trainer.strategy`.",
        [*public(lrtrain.training, Strategy), *of_others(Strategy)],
    )
    yield ("Loggers", "Under `trainer.logger`, which adds to the record that is kept in any case.", [MLflowLogger])


def classes() -> str:
    """The page of the classes that a YAML can name."""
    parts = [
        "# Classes",
        "What comes with lrtrain for a `class_path`. Nothing is registered: a class of your own stands beside these by "
        "its own path ([extending](../extending.md)). The page is made from the code.",
    ]
    for title, text, made in kinds():
        parts += [f"## {title}", text]
        parts += [section(_path(one), one, level=3, units=_path(one).startswith("lrtrain.")) for one in made]
    return "\n\n".join(parts)


def _path(made: type) -> str:
    """The class path as YAML gives it: that of the package which exports it."""
    module = made.__module__
    for package in (lrtrain.nn, lrtrain.optim, lrtrain.constraints, lrtrain.training):
        if made.__name__ in package.__all__ and module.startswith(package.__name__):
            return f"{package.__name__}.{made.__name__}"
    if module.startswith("torch.optim."):
        return f"torch.optim.{made.__name__}"
    if module.startswith("lightning.pytorch.strategies."):
        return f"lightning.pytorch.strategies.{made.__name__}"
    if module.startswith("lrtrain.studies.evaluation"):
        return f"lrtrain.studies.evaluation.{made.__name__}"
    return f"{module}.{made.__name__}"


def trainer() -> str:
    """The page of Lightning's Trainer."""
    return "\n\n".join(
        [
            "# Trainer",
            "The keys of `trainer` are the arguments of Lightning's `Trainer`, whose words these are. What `lrtrain` "
            "sets by itself, or refuses: the run directory (`default_root_dir`), checkpoints (`enable_checkpointing`; "
            "see [checkpoints](configuration.md#checkpoints)), and the distribution of the data "
            "(`use_distributed_sampler`). Lengths are counted in optimizer steps (`max_steps`) and micro-batches "
            "(`val_check_interval`, `accumulate_grad_batches`, `limit_val_batches`).",
            table(fields_of(Trainer, LINKS, GIVEN, units=False), units=False),
        ]
    )


def files() -> str:
    """The page of the files of studies."""
    point = (
        "A key of the configuration with `choices: [...]`, or a range: `low`, `high`, and if wanted `step`, "
        "`log: true` (drawn on a logarithmic scale) and `int: true` (whole numbers). A grid needs `choices` or `step`."
    )
    return "\n\n".join(
        [
            "# Files of studies",
            "The keys of the files that `lrtrain sweep`, `experiment` and `scaling plan` take. Paths are relative to "
            "the file, or names of shipped recipes and overlays. The page is made from the code.",
            section("A search space", Space, without=("path", "flags")),
            "### A parameter",
            point,
            section("An experiment", experiment.Definition, without=("name",)),
            section("A variant", experiment.Variant, "Under its name.", 3, without=("name",)),
            section(
                "A scale",
                experiment.Scale,
                "What stands at the top of the file holds at every scale; `scales: {NAME: …}` makes several, and what "
                "stands there, or in a variant under the scale's name, is stronger.",
                3,
                without=("name", "options"),
            ),
            section("A picture", experiment.Drawing, level=3),
            section("A check", experiment.Check, level=3),
            *(
                section(f"`kind: {name}`", kind, level=3)
                for name, kind in experiment.KINDS.items()
                if kind is not experiment.Training
            ),
            section("An axis", experiment.Axis, "Of the kind `rates`, under its name.", 3, without=("name",)),
            section("An isoFLOP grid", Grid),
        ]
    )


PAGES: dict[str, Callable[[], str]] = {
    "reference/configuration.md": configuration,
    "reference/classes.md": classes,
    "reference/trainer.md": trainer,
    "reference/files.md": files,
}
