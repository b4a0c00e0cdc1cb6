"""How large the projections of a decoder begin, whatever way each of them is written."""

import math
import warnings
from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import nn

from lrtrain.nn.projection import projections

InitialScale = Literal["fan_in", "width", "gpt2"] | float
"""The standard deviation of the entries of every W: 1/√in_features; √2 / width; 0.02, and 0.02/√(2 · depth) where the
output is added to the residual stream; or a number."""


def check_initial_scale(scale: InitialScale) -> None:
    """Raises ValueError for what is no rule and no positive number."""
    if scale not in ("fan_in", "width", "gpt2") and not (isinstance(scale, float | int) and 0 < scale < math.inf):
        raise ValueError(f"initial_scale must be fan_in, width, gpt2 or a positive number, got {scale}")


@torch.no_grad()
def rescale(decoder: nn.Module, scale: InitialScale, width: int, depth: int, residual: Collection[nn.Module]) -> None:
    """Multiplies every projection, drawn with the standard deviation 1/√in_features, to have that of a rule.

    One without a method `scale_(factor)`, W ← factor · W, stays as it is, which is warned of.

    Args:
        decoder: Holds them.
        scale: The rule; `fan_in` leaves them as they are.
        width: Model width.
        depth: Blocks.
        residual: Those whose output is added to the residual stream.

    Raises:
        ValueError: a projection has a scale of its own.
    """
    if scale == "fan_in":
        return
    as_drawn: list[str] = []
    for name, projection in projections(decoder).items():
        if getattr(projection, "own_scale", False):
            raise ValueError(
                f"{name} has an initial scale of its own (std, or init: paper), and initial_scale is {scale}: "
                "set initial_scale to fan_in to keep the own one"
            )
        multiply: Any = getattr(projection, "scale_", None)
        if multiply is None:
            as_drawn.append(f"{type(projection).__name__} ({name})")
        else:
            multiply(_std(scale, width, depth, projection in residual) * projection.in_features**0.5)
    if as_drawn:
        warnings.warn(
            f"initial_scale {scale}: {len(as_drawn)} projections begin as they draw themselves, {as_drawn[0]} first: "
            "they have no method scale_(factor), which multiplies W",
            stacklevel=1,  # a line of ours
        )


def _std(scale: InitialScale, width: int, depth: int, residual: bool) -> float:
    if scale == "width":
        return 2**0.5 / width
    if scale == "gpt2":
        return 0.02 / (2 * depth) ** 0.5 if residual else 0.02
    return float(scale)
