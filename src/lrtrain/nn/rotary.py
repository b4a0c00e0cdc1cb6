"""Rotary positions: angles, and turning queries and keys by them."""

import torch
from torch import Tensor

from lrtrain.nn.rope_scaling import RopeScaling


def rotary_angles(
    tokens: int, width: int, base: float, device: torch.device, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin (T, E/2) of position · base^(−2i/E), in float32, for the positions 0 … tokens − 1.

    With a scaling the frequencies base^(−2i/E) are lowered by it.
    """
    frequencies = base ** (-torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    if scaling is not None:
        frequencies = scaling.scaled(frequencies)
    angles = torch.arange(tokens, device=device, dtype=torch.float32)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x_BHTE: Tensor, rope_TE: tuple[Tensor, Tensor]) -> Tensor:
    """Turns the pairs (x_i, x_{i+E/2}) of each head by their position's angle (arXiv 2104.09864)."""
    cos, sin = (angle.to(x_BHTE.dtype) for angle in rope_TE)
    first, second = x_BHTE.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
