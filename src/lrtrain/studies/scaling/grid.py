"""The isoFLOP grid: which sizes, at which budgets, for how many steps."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.hints import near
from lrtrain.runtime.yaml_file import content_of
from lrtrain.studies.scaling.shapes import Shape, Size, shape_of

SIZES = 3
"""Sizes that a budget has at least: a parabola needs three points."""

STEPS = 10
"""Steps that a point has at least: whole steps then meet the budget within 5 %."""

OWN = {
    *("name", "runs", "config", "ckpt_path", "seed_everything"),
    *("trainer.max_steps", "trainer.val_check_interval", "trainer.check_val_every_n_epoch"),
    *("trainer.log_every_n_steps", *Shape(0, 0, 0, 0, 0).settings),
}
"""Settings that every point has its own value of."""


@dataclass(frozen=True)
class Grid:
    """What a grid file asks for.

    Args:
        configs: The recipe and its overlays; in the file relative to the file.
        budgets: Training FLOPs of one run, forward and backward.
        dials: Candidates for the size; `shapes.shape_of` turns one into a shape.
        head_width: Width of an attention head, the unit of all widths.
        tokens_per_parameter: Lowest and highest D / N of a run, N all parameters; others are left out.
        lr: `fixed` trains every point with the recipe's learning rate; `searched` searches that of the projections
            (`model.optimizers.hidden`) for every point, by factors of two from the recipe's.
        seeds: Of weights and data; every point is trained once with each.
        overrides: Further keys of the configuration, the same for all points, stronger than the files.
    """

    configs: tuple[str, ...]
    budgets: tuple[float, ...]
    dials: tuple[int, ...]
    tokens_per_parameter: tuple[float, float]
    head_width: int = 64
    lr: str = "fixed"
    seeds: tuple[int, ...] = (0,)
    overrides: dict[str, Any] = field(default_factory=dict)

    def shapes(self) -> list[Shape]:
        return [shape_of(dial, self.head_width) for dial in self.dials]


@dataclass(frozen=True)
class Point:
    """One size at one budget: `tokens` = steps × tokens of a step, `flops` = tokens × training FLOPs of a token."""

    name: str
    budget: float
    shape: Shape
    parameters: int
    non_embedding: int
    steps: int
    tokens: int
    flops: int


def load_grid(path: Path) -> Grid:
    """Reads a grid file. Raises UserError, with the key, for whatever is not as `Grid` says."""
    content = content_of(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings: a grid is YAML of the form `key: value`")
    known = list(Grid.__dataclass_fields__)
    for key in content:
        if key not in known:
            raise UserError(f"{path}: {key}: unknown key; {near(str(key), known)}")
    for key in ("configs", "budgets", "dials", "tokens_per_parameter"):
        if key not in content:
            raise UserError(f"{path}: {key} is missing: see configs/scaling_laws/tiny.yaml")
    read = _Reader(path, content)
    grid = Grid(
        configs=tuple(os.path.normpath(path.parent / name) for name in read.items("configs", str, "a path")),
        budgets=tuple(sorted(read.numbers("budgets"))),
        dials=tuple(sorted(read.items("dials", int, "a whole number of at least 1", least=1))),
        tokens_per_parameter=read.bounds("tokens_per_parameter"),
        head_width=read.whole("head_width", 64, least=2),
        lr=read.choice("lr", ("fixed", "searched")),
        seeds=tuple(read.items("seeds", int, "a whole number of at least 0", least=0, default=(0,))),
        overrides=read.mapping("overrides"),
    )
    if grid.head_width % 2:
        raise UserError(f"{path}: head_width is {grid.head_width}: rotary positions need an even one")
    for key in grid.overrides:
        check_override(key, f"{path}: overrides.{key}")
    return grid


def check_override(key: str, where: str) -> None:
    """Raises UserError for a setting that every point has its own value of."""
    if key.replace(".init_args", "") in OWN:
        raise UserError(f"{where}: the plan gives each point its own; leave it out")


def points_of(grid: Grid, sizes: Mapping[Shape, Size], tokens_per_step: int) -> list[Point]:
    """Every size at every budget C, with D = C / (training FLOPs of a token) rounded to whole steps.

    Left out where D / N is outside `tokens_per_parameter`, or where there are less than ten steps.

    Raises:
        UserError: a budget at which less than three sizes remain.
    """
    low, high = grid.tokens_per_parameter
    found = []
    for budget in grid.budgets:
        ratios, kept = [], []
        for shape, size in sizes.items():
            steps = round(budget / (size.flops * tokens_per_step))
            tokens = steps * tokens_per_step
            ratios.append(tokens / size.parameters)
            if steps >= STEPS and low <= ratios[-1] <= high:
                name = f"{_short(budget)}-n{shape.dial}"
                flops = tokens * size.flops
                kept.append(Point(name, budget, shape, size.parameters, size.non_embedding, steps, tokens, flops))
        if len(kept) < SIZES:
            raise UserError(
                f"budget {_short(budget)}: {len(kept)} of the dials give {STEPS} steps and {low:g} to {high:g} tokens "
                f"per parameter (all of them: {min(ratios):.3g} to {max(ratios):.3g}), and a parabola needs {SIZES}: "
                "change the budget, the dials or tokens_per_parameter"
            )
        found += kept
    names = [point.name for point in found]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"the point {doubled} is there twice: give each budget and each dial once")
    return found


def table(points: Sequence[Point]) -> str:
    """One line a point: shape, N in all and without embeddings, D, steps, C and D / N."""
    header = ("point", "shape", "N", "non-embedding", "D", "steps", "C", "D/N")
    rows = [
        (
            point.name,
            f"{point.shape.depth} x {point.shape.width}",
            f"{point.parameters:,}",
            f"{point.non_embedding:,}",
            f"{point.tokens:,}",
            f"{point.steps:,}",
            f"{point.flops:.4g}",
            f"{point.tokens / point.parameters:.3g}",
        )
        for point in points
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    return "\n".join([*lines, f"{len(points)} points, {sum(point.flops for point in points):.3g} FLOPs in all"])


def _short(budget: float) -> str:
    """`2.2e18` of 2.2e+18."""
    mantissa, exponent = f"{budget:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


class _Reader:
    """Takes values out of a grid file and refuses, with file and key, those of a wrong kind."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path, self.content = path, content

    def _refuse(self, key: str, wanted: str) -> UserError:
        return UserError(f"{self.path}: {key}: expected {wanted}, got {self.content[key]!r}")

    def items(self, key: str, kind: type[Any], wanted: str, least: int | None = None, default: tuple = ()) -> list[Any]:
        values = self.content.get(key, default)
        values = list(values) if isinstance(values, list | tuple) else [values]
        right = all(type(value) is kind and (least is None or value >= least) for value in values)
        if not values or not right or len(set(values)) < len(values):
            raise self._refuse(key, f"a list, each item {wanted} and none twice")
        return values

    def numbers(self, key: str) -> list[float]:
        values = self.content[key] if isinstance(self.content[key], list) else [self.content[key]]
        try:
            numbers = [float(value) for value in values]  # YAML takes 1e12, without a point, for a text
        except (TypeError, ValueError) as error:
            raise self._refuse(key, "a list of numbers") from error
        if not numbers or not all(0 < number < math.inf for number in numbers):
            raise self._refuse(key, "a list of positive numbers")
        return numbers

    def bounds(self, key: str) -> tuple[float, float]:
        numbers = self.numbers(key)
        if len(numbers) != 2 or numbers[0] >= numbers[1]:
            raise self._refuse(key, "a lower and a higher bound")
        return numbers[0], numbers[1]

    def whole(self, key: str, default: int, least: int) -> int:
        value = self.content.get(key, default)
        if type(value) is not int or value < least:
            raise self._refuse(key, f"a whole number of at least {least}")
        return value

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        value = self.content.get(key, choices[0])
        if value not in choices:
            raise self._refuse(key, " or ".join(choices))
        return str(value)

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.content.get(key, {})
        if not isinstance(value, dict) or not all(isinstance(k, str) and not isinstance(value[k], dict) for k in value):
            raise self._refuse(key, "dotted keys with their values, such as data.block_size: 64")
        return value
