"""The isoFLOP grid: which sizes, what each costs, at which budgets, for how many steps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lrtrain.config.typed_file import Count, Index, Positive, refused, typed
from lrtrain.nn import Decoder
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.table import table
from lrtrain.runtime.yaml_file import content_of

TRAINING = 3
"""FLOPs of forward and backward pass over those of the forward pass (arXiv 2001.08361, section 2.1)."""

SIZES = 3
"""Sizes that a budget has at least: a parabola needs three points."""

STEPS = 10
"""Steps that a point has at least: whole steps then meet the budget within 5 %."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder that its size index sets."""

    size_index: int
    width: int
    depth: int
    heads: int
    ffn_width: int

    @property
    def settings(self) -> dict[str, int]:
        """The shape as keys of the configuration."""
        return {f"model.decoder.{key}": getattr(self, key) for key in ("width", "depth", "heads", "ffn_width")}


@dataclass(frozen=True)
class Size:
    """What a shape costs.

    `parameters` are all of them, `non_embedding` those without embedding and output head; `flops` are those of training
    on one token, forward and backward.
    """

    parameters: int
    non_embedding: int
    flops: int


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
        size_indices: Candidates for the size; `shapes.shape_of` turns one into a shape.
        head_width: Width of an attention head, the unit of all widths.
        tokens_per_parameter: Lowest and highest D / N of a run, N all parameters; others are left out.
        lr: `fixed` trains every point with the recipe's learning rate; `searched` searches that of the projections
            (`model.optimizers.hidden`) for every point, by factors of two from the recipe's.
        seeds: Of weights and data; every point is trained once with each.
        overrides: Further keys of the configuration, the same for all points, stronger than the files.
    """

    configs: tuple[Path, ...]
    budgets: tuple[Positive, ...]
    size_indices: tuple[Count, ...]
    tokens_per_parameter: tuple[Positive, Positive]
    head_width: Count = 64
    lr: Literal["fixed", "searched"] = "fixed"
    seeds: tuple[Index, ...] = (0,)
    overrides: dict[str, Any] = field(default_factory=dict)


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
    grid = typed(Grid, content_of(path), path)
    for key in ("configs", "budgets", "size_indices", "seeds"):
        values = getattr(grid, key)
        if not values or len(set(values)) < len(values):
            raise refused(path, "", key, "a list, at least one item and none twice", list(values))
    low, high = grid.tokens_per_parameter
    if low >= high:
        raise refused(path, "", "tokens_per_parameter", "a lower and a higher bound", [low, high])
    if grid.head_width % 2:
        raise UserError(f"{path}: head_width is {grid.head_width}: rotary positions need an even one")
    for key, value in grid.overrides.items():
        if isinstance(value, dict):
            raise refused(path, "overrides", key, "a value; keys are dotted, such as data.block_size: 64", value)
        check_override(key, f"{path}: overrides.{key}")
    return replace(grid, budgets=tuple(sorted(grid.budgets)), size_indices=tuple(sorted(grid.size_indices)))


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
                name = f"{_short(budget)}-n{shape.size_index}"
                flops = tokens * size.flops
                kept.append(Point(name, budget, shape, size.parameters, size.non_embedding, steps, tokens, flops))
        if len(kept) < SIZES:
            raise UserError(
                f"budget {_short(budget)}: {len(kept)} of the sizes give {STEPS} steps and {low:g} to {high:g} tokens "
                f"per parameter (all of them: {min(ratios):.3g} to {max(ratios):.3g}), and a parabola needs {SIZES}: "
                "change the budget, size_indices or tokens_per_parameter"
            )
        found += kept
    names = [point.name for point in found]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"the point {doubled} is there twice: give each budget and each size once")
    return found


def shape_of(size_index: int, head_width: int = 64) -> Shape:
    """The decoder of size index n with heads of an even width h.

    depth n, heads n, width d = h n, feed-forward width ⌈8 d / 3⌉ rounded up to a multiple of 4 h. With h = 64 that
    multiple is the usual 256, and indices 12, 20 and 24 are the recipes S, M and L; smaller heads make smaller decoders
    of the same proportions.
    """
    n, width, multiple = size_index, head_width * size_index, 4 * head_width
    return Shape(n, width, n, n, math.ceil(8 * width / (3 * multiple)) * multiple)


def size_of(decoder: Decoder, block_size: int) -> Size:
    """Counts a decoder's parameters and the FLOPs of training it on one token of a sequence of `block_size`."""
    total = sum(p.numel() for p in decoder.parameters())
    tables = {id(p): p.numel() for p in (decoder.embedding.weight, decoder.head_VD)}
    return Size(total, total - sum(tables.values()), TRAINING * decoder.flops_per_token(block_size))


def points_table(points: Sequence[Point]) -> str:
    """One line a point: shape, N in all and without embeddings, D, steps, C and D / N."""
    rows = [["point", "shape", "N", "non-embedding", "D", "steps", "C", "D/N"]]
    for point in points:
        counts = (point.parameters, point.non_embedding, point.tokens, point.steps)
        shape, ratio = f"{point.shape.depth} x {point.shape.width}", point.tokens / point.parameters
        rows.append([point.name, shape, *(f"{count:,}" for count in counts), f"{point.flops:.4g}", f"{ratio:.3g}"])
    return f"{table(rows)}\n{len(points)} points, {sum(point.flops for point in points):.3g} FLOPs in all"


def _short(budget: float) -> str:
    """`2.2e18` of 2.2e+18."""
    mantissa, exponent = f"{budget:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
