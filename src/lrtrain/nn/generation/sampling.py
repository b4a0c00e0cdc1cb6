"""Which token follows: the rules that narrow and scale a distribution, and the draw."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LIKELIEST = 1024
"""Tokens among which a nucleus is looked for before all are sorted, which takes as long as several blocks."""


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from logits, by the rules of transformers and in their order.

    Args:
        temperature: What logits are divided by, at least 0; 0 takes the likeliest token, and the rules below but the
            penalty make no difference.
        top_k: Draw among the k likeliest tokens (and those as likely as the kth); all when None.
        top_p: Draw among the fewest likeliest tokens whose probabilities sum to at least this, in (0, 1] (arXiv
            1904.09751).
        min_p: Draw among tokens at least this times as likely as the likeliest, in [0, 1] (arXiv 2407.01082).
        repetition_penalty: Logits of tokens that were there before are divided by it where positive and multiplied
            where negative, > 0 (arXiv 1909.05858); 1 changes nothing.

    Raises:
        ValueError: a value is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        rules = {
            "temperature": (0 <= self.temperature < float("inf"), "a number of at least 0"),
            "top_k": (self.top_k is None or self.top_k >= 1, "at least 1"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "min_p": (0 <= self.min_p <= 1, "in [0, 1]"),
            "repetition_penalty": (0 < self.repetition_penalty < float("inf"), "a number above 0"),
        }
        for name, (holds, expected) in rules.items():
            if not holds:
                raise ValueError(f"{name} must be {expected}, got {getattr(self, name)}")

    def draw(self, logits_BV: Tensor, chances: Sequence[float], seen_BV: Tensor | None = None) -> Tensor:
        """A token of each row.

        Args:
            logits_BV: float32 or float64; finite.
            chances: A number in [0, 1) for each row: the token at which the rows' cumulative distribution passes it.
            seen_BV: Which tokens were there before; needed for a penalty.
        """
        if seen_BV is not None:
            logits_BV = self.penalized(logits_BV, seen_BV)
        if self.temperature == 0:
            return logits_BV.argmax(-1)
        weights, tokens = self.kept(logits_BV)
        cumulative = weights.cumsum(-1)
        total = cumulative[:, -1:]
        aims = torch.tensor(chances, dtype=total.dtype, device=total.device)[:, None] * total
        aims = torch.minimum(aims, total.nextafter(torch.zeros_like(total)))  # a chance just below 1 may be rounded up
        drawn = torch.searchsorted(cumulative, aims, right=True)
        return (drawn if tokens is None else tokens.gather(-1, drawn))[:, 0]

    def penalized(self, logits_BV: Tensor, seen_BV: Tensor) -> Tensor:
        """Logits after the repetition penalty."""
        penalty = self.repetition_penalty
        return torch.where(seen_BV, torch.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty), logits_BV)

    def kept(self, logits_BV: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights in float64, proportional to the probabilities and 0 for what is not drawn, and whose they are.

        These are the tokens in the order of the weights, which descend, or None where every token is at its place.
        """
        largest = logits_BV.amax(-1, keepdim=True)
        weights = ((logits_BV - largest).double() / self.temperature).exp()  # 1 for the likeliest, whatever temperature
        tokens = None
        if self.top_k is not None or self.top_p < 1:
            total = weights.sum(-1, keepdim=True)
            weights, tokens = self._ordered(weights, total)
            if self.top_k is not None:
                weights = weights.masked_fill(weights < self._kth(weights), 0)
                total = weights.sum(-1, keepdim=True)
            # A token stays while the ones before it do not reach top_p; the first always stays.
            weights = weights.masked_fill(weights.cumsum(-1) - weights >= self.top_p * total, 0)
        return weights.masked_fill(weights < self.min_p, 0), tokens

    def _ordered(self, weights: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """The weights in descending order, and their tokens: all, or the largest that suffice for the rules."""
        count = min(max(LIKELIEST, 2 * (self.top_k or 0)), weights.shape[-1])
        largest, tokens = weights.topk(count)
        if self.top_k is None:
            suffice = largest.sum(-1, keepdim=True) >= self.top_p * total
        else:
            suffice = largest[:, -1:] < self._kth(largest)
        return (largest, tokens) if suffice.all() else weights.sort(descending=True)

    def _kth(self, ordered: Tensor) -> Tensor:
        assert self.top_k is not None
        place = min(self.top_k, ordered.shape[-1]) - 1
        return ordered[:, place : place + 1]
