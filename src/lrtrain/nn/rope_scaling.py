"""Rotary frequencies of a model whose context was lengthened after its training."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class RopeScaling:
    """How the frequencies f of the rotary positions are lowered, with the names that transformers' config.json has.

    `linear` divides all by `factor` (arXiv 2306.15595). `llama3`, of Llama 3.1, leaves those whose wavelength 2π/f is
    below L/`high_freq_factor`, L = `original_max_position_embeddings`, divides those above L/`low_freq_factor` by
    `factor`, and goes from one to the other in between, linearly in L · f/2π.

    Args:
        rope_type: `linear` or `llama3`.
        factor: How much longer the context is.
        low_freq_factor: For llama3; L over the wavelength at which the whole factor begins.
        high_freq_factor: For llama3; L over the wavelength at which nothing is changed any more.
        original_max_position_embeddings: For llama3; L, tokens of the context before.

    Raises:
        ValueError: a number is missing or out of range, or one of llama3's is given with linear.
    """

    rope_type: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None

    def __post_init__(self) -> None:
        if self.rope_type not in ("linear", "llama3"):
            raise ValueError(f"rope_scaling: rope_type must be linear or llama3, got {self.rope_type}")
        if not 0 < self.factor < math.inf:
            raise ValueError(f"rope_scaling: factor must be finite and positive, got {self.factor}")
        names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        for name in names:
            value = getattr(self, name)
            if (value is None) == (self.rope_type == "llama3"):
                raise ValueError(f"rope_scaling: {self.rope_type} takes {'' if value is None else 'no '}{name}")
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"rope_scaling: {name} must be finite and positive, got {value}")
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and low >= high:
            raise ValueError(f"rope_scaling: low_freq_factor must be below high_freq_factor, got {low} and {high}")

    def scaled(self, frequencies: Tensor) -> Tensor:
        """The lowered frequencies, in radians per token."""
        low, high, original = self.low_freq_factor, self.high_freq_factor, self.original_max_position_embeddings
        if low is None or high is None or original is None:
            return frequencies / self.factor
        turns = original * frequencies / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return torch.lerp(frequencies / self.factor, frequencies, kept)
