"""Spectral renormalization: the step scale that bounds ‖ΔW‖₂ of W = A Bᵀ."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lrtrain.linalg import norm_bound, pieces, spectral_norm

FIRST_STEPS = 20
"""Power steps of the first measurement, which starts from a random vector; later calls go on from the last one."""


CACHED = 1 << 20
"""Numbers that a CPU's caches hold: a power step reads them twice."""


class SpectralRenormalization:
    """Before each step, measures σ_A = ‖A‖₂ and σ_B = ‖B‖₂ and gives both factors the scale 1/(σ_A + σ_B + 1).

    With ‖O‖₂ ≤ 1 and ρ = η · scale ≤ 1 the product then moves by
    ‖ΔW‖₂ ≤ ρ σ_A + ρ σ_B + ρ² ≤ η. One power step a call follows the norms, the vector is kept between calls. For an
    optimizer that is `strict` the norms are upper bounds instead.

    Args:
        pairs: name -> (A, B) with A (out, r) and B (in, r), plain tensors or row-sharded DTensors.

    Source: Spectron, arXiv 2602.12429, Algorithms 1 and 3.
    """

    def __init__(self, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        self.pairs = dict(pairs)
        self._vectors: dict[str, Tensor] = {}
        self._sigma: dict[str, Tensor] = {}

    def before_step(self, optimizer: Optimizer) -> None:
        """Measures all factors and sets the optimizer's scales.

        Raises:
            TypeError: no part of the optimizer that holds a factor takes step scales.
        """
        holders = self._holders(optimizer)
        self._measure(strict={name for name, (a, _) in self.pairs.items() if getattr(holders[a], "strict", False)})
        for name, (a, b) in self.pairs.items():
            scale = 1 / (self._sigma[f"{name}.A"] + self._sigma[f"{name}.B"] + 1)
            holders[a].step_scale[a] = scale
            holders[b].step_scale[b] = scale

    def after_step(self) -> None:
        """Nothing is left to do after the update."""

    def norms(self) -> dict[str, tuple[Tensor, Tensor]]:
        """name -> (σ_A, σ_B) of the last measurement, 0-d tensors."""
        return {name: (self._sigma[f"{name}.A"], self._sigma[f"{name}.B"]) for name in self.pairs if self._sigma}

    def state_dict(self) -> dict[str, Any]:
        return {"vectors": dict(self._vectors)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._vectors = dict(state_dict["vectors"])

    def _holders(self, optimizer: Optimizer) -> dict[Tensor, Any]:
        """factor -> the optimizer that holds it."""
        holders: dict[Tensor, Any] = {}
        for part in getattr(optimizer, "optimizers", [optimizer]):
            if takes_step_scale(part):
                holders |= {parameter: part for group in part.param_groups for parameter in group["params"]}
        for name, factors in self.pairs.items():
            if not all(factor in holders for factor in factors):
                raise TypeError(f"spectral renormalization needs an optimizer that takes step scales for {name}")
        return holders

    def _measure(self, strict: set[str]) -> None:
        factors = {f"{name}.{side}": x for name, pair in self.pairs.items() for side, x in zip("AB", pair, strict=True)}
        bounded = [name for name in factors if name.rpartition(".")[0] in strict]
        followed = [name for name in factors if name not in set(bounded)]
        for piece in _pieces(bounded, factors, CACHED):
            bounds = norm_bound([factors[name].detach() for name in piece])
            self._sigma |= dict(zip(piece, bounds, strict=True))
        for piece in _pieces(followed, factors, CACHED):
            fresh = any(name not in self._vectors for name in piece)
            start = [self._vectors[n] if n in self._vectors else self._first_vector(factors[n]) for n in piece]
            sigma, vectors = spectral_norm(
                [factors[name].detach() for name in piece], start, steps=FIRST_STEPS if fresh else 1
            )
            self._sigma |= dict(zip(piece, sigma, strict=True))
            self._vectors |= dict(zip(piece, vectors, strict=True))

    @staticmethod
    def _first_vector(factor: Tensor) -> Tensor:
        """A unit vector (r) that is the same on every process and in every run."""
        generator = torch.Generator().manual_seed(0)
        vector = torch.randn(factor.shape[-1], generator=generator)
        return (vector / vector.norm()).to(factor.device)


def _pieces(names: list[str], factors: Mapping[str, Tensor], most: int) -> list[list[str]]:
    return [[names[index] for index in piece] for piece in pieces([factors[name] for name in names], most)]


def takes_step_scale(optimizer: Optimizer) -> bool:
    """Whether an optimizer multiplies its updates by `step_scale[parameter]`."""
    return isinstance(getattr(optimizer, "step_scale", None), dict)
