"""Rotary positions: angles, and turning queries and keys by them."""

import torch
from torch import Tensor


def rotary_angles(start: int, tokens: int, width: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin (T, E/2) of position · base^(−2i/E), in float32, for positions start … start + tokens − 1."""
    frequencies = base ** (-torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    angles = torch.arange(start, start + tokens, device=device, dtype=torch.float32)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x_BHTE: Tensor, rope_TE: tuple[Tensor, Tensor]) -> Tensor:
    """Turns the pairs (x_i, x_{i+E/2}) of each head by their position's angle (arXiv 2104.09864)."""
    cos, sin = (angle.to(x_BHTE.dtype) for angle in rope_TE)
    first, second = x_BHTE.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
