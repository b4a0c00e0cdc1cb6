"""The self-guided projection: a dense weight leads the factors at first, fades, and is deleted."""

import math
import random
from collections.abc import Collection
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrtrain.nn.lowrank import LowRankLinear

UNSCHEDULED = 0.5
"""α until `guide` sets it: both parts are trained."""


class SelfGuidedLinear(LowRankLinear):
    """y = α W x + (1 − α) A Bᵀ x with a dense W (out, in), which starts as A Bᵀ; after `release`, y = A Bᵀ x.

    `guide` sets α and says, step by step, whether the dense part is skipped in training: then y = A Bᵀ x, and W gets no
    gradient. Evaluation never skips, and `materialize` is the mixture's weight. α is saved while there is a W; a
    released layer has a LowRankLinear's state, A and B alone.

    Args:
        in_features: Input width.
        out_features: Output width.
        rank: Rank r, 1 … min(in, out); or give rank_ratio.
        rank_ratio: r = round(rank_ratio · in_features), at most min(in, out); 0 < rank_ratio ≤ 1.
        std: Standard deviation of the dense draw that A and B approximate; 1/√in_features when null.

    Raises:
        ValueError: rank or rank_ratio out of range, or not exactly one of them given.

    Source: self-guided training, arXiv 2406.16450, section 3.
    """

    training_callback: ClassVar[str] = "lrtrain.training.SelfGuidance"
    deletable: ClassVar[tuple[str, ...]] = ("W",)
    not_compiled: ClassVar[str] = (
        "self-guided projections compute something else in every step, and each would be compiled anew"
    )
    W: nn.Parameter | None
    alpha: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int | None = None,
        rank_ratio: float | None = None,
        std: float | None = None,
    ) -> None:
        super().__init__(in_features, out_features, rank, rank_ratio, std)
        self.W = nn.Parameter(torch.empty(out_features, in_features))
        self.register_buffer("alpha", torch.empty(()))
        self.skip_dense = False
        self._begin()

    @torch.no_grad()
    def set_triplets(self, p: Tensor, sigma: Tensor, q: Tensor) -> None:
        super().set_triplets(p, sigma, q)
        if getattr(self, "W", None) is not None:  # LowRankLinear sets A and B before there is one
            self._begin()

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        super().scale_(factor)
        self._begin()

    @torch.no_grad()
    def _begin(self) -> None:
        assert self.W is not None
        assert self.alpha is not None
        self.W.copy_(self.A @ self.B.mT)
        self.alpha.fill_(UNSCHEDULED)

    def forward(self, x: Tensor) -> Tensor:
        factored = super().forward(x)
        if self.W is None or self.alpha is None or (self.training and self.skip_dense):
            return factored
        return self.alpha * F.linear(x, self.W) + (1 - self.alpha) * factored

    def materialize(self) -> Tensor:
        product = super().materialize()
        return product if self.W is None or self.alpha is None else self.alpha * self.W + (1 - self.alpha) * product

    def release(self) -> list[nn.Parameter]:
        """Deletes W and α, for good, and returns W, for the optimizer to drop; nothing if that was done before."""
        released = [] if self.W is None else [self.W]
        self.W = self.alpha = None
        return released

    def before_load(self, saved: Collection[str]) -> None:
        """Deletes W where a state has the factors alone: it was saved after the release."""
        if "A" in saved and "W" not in saved:
            self.release()

    @property
    def flops_per_token(self) -> int:
        """Of the training forward pass in this step: with the dense part unless it is skipped, or deleted."""
        dense = self.W is not None and not self.skip_dense
        return super().flops_per_token + dense * 2 * self.in_features * self.out_features


def guidance(step: int, guided_steps: int) -> float:
    """α(t) = ½(1 + cos(π t / T)) at step t = 0, 1, … of T guided steps; 0 from step T on."""
    return 0.5 * (1 + math.cos(math.pi * step / guided_steps)) if step < guided_steps else 0.0


@torch.no_grad()
def guide(module: nn.Module, step: int, guided_steps: int, seed: int = 0) -> float:
    """Prepares every self-guided layer for a step: sets α(step) and skips its dense part with probability 1 − α.

    The coins depend on the seed, the step and the layer's place alone, so that they are the same on every process, in
    every micro-batch of a step, when activations are computed again, and after a resume.

    Returns:
        α(step).
    """
    alpha = guidance(step, guided_steps)
    coins = random.Random(f"{seed} {step}")
    for layer in self_guided(module).values():
        layer.skip_dense = coins.random() >= alpha
        if layer.alpha is not None:
            layer.alpha.fill_(alpha)
    return alpha


def release(module: nn.Module) -> list[nn.Parameter]:
    """Deletes all dense weights and returns them; `optim.remove_parameters` then frees them."""
    return [weight for layer in self_guided(module).values() for weight in layer.release()]


def self_guided(module: nn.Module) -> dict[str, SelfGuidedLinear]:
    """name -> self-guided layer, released or not, in the module's order."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, SelfGuidedLinear)}
