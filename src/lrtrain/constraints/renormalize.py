"""Spectral renormalisation: the step scale that bounds ‖ΔW‖₂ of W = A Bᵀ."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lrtrain.linalg import spectral_norm

FIRST_STEPS = 20
"""Power steps of the first measurement, which starts from a random vector; later calls go on from the last one."""


class SpectralRenormalization:
    """Before each step, measures σ_A = ‖A‖₂ and σ_B = ‖B‖₂ and gives both factors the scale 1/(σ_A + σ_B + 1).

    With ‖O‖₂ ≤ 1 and ρ = η · scale ≤ 1 the product then moves by
    ‖ΔW‖₂ ≤ ρ σ_A + ρ σ_B + ρ² ≤ η. One power step a call follows the norms, the vector is kept between calls.

    Args:
        pairs: name -> (A, B) with A (out, r) and B (in, r).

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
        scales = self._scales_of(optimizer)
        self._measure()
        for name, (a, b) in self.pairs.items():
            scale = 1 / (self._sigma[f"{name}.A"] + self._sigma[f"{name}.B"] + 1)
            scales[a][a] = scale
            scales[b][b] = scale

    def after_step(self) -> None:
        """Nothing is left to do after the update."""

    def norms(self) -> dict[str, tuple[Tensor, Tensor]]:
        """name -> (σ_A, σ_B) of the last measurement, 0-d tensors."""
        return {name: (self._sigma[f"{name}.A"], self._sigma[f"{name}.B"]) for name in self.pairs if self._sigma}

    def state_dict(self) -> dict[str, Any]:
        return {"vectors": dict(self._vectors)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._vectors = dict(state_dict["vectors"])

    def _scales_of(self, optimizer: Optimizer) -> dict[Tensor, dict[Tensor, Tensor]]:
        """factor -> the `step_scale` of the optimizer that holds it."""
        holders: dict[Tensor, dict[Tensor, Tensor]] = {}
        for part in getattr(optimizer, "optimizers", [optimizer]):
            for group in part.param_groups:
                for parameter in group["params"]:
                    if takes_step_scale(part):
                        holders[parameter] = part.step_scale
        for name, factors in self.pairs.items():
            if not all(factor in holders for factor in factors):
                raise TypeError(f"spectral renormalisation needs an optimizer that takes step scales for {name}")
        return holders

    def _measure(self) -> None:
        factors = {f"{name}.{side}": x for name, pair in self.pairs.items() for side, x in zip("AB", pair, strict=True)}
        by_shape: dict[tuple[torch.Size, torch.device], list[str]] = defaultdict(list)
        for name, factor in factors.items():
            by_shape[factor.shape, factor.device].append(name)
        for names in by_shape.values():
            fresh = any(name not in self._vectors for name in names)
            stacked = torch.stack([factors[name].detach() for name in names])
            start = [self._vectors[n] if n in self._vectors else self._first_vector(factors[n]) for n in names]
            vectors = torch.stack([vector.to(stacked.device) for vector in start])
            sigma, vectors = spectral_norm(stacked, vectors, steps=FIRST_STEPS if fresh else 1)
            for name, value, vector in zip(names, sigma.unbind(), vectors.unbind(), strict=True):
                self._sigma[name] = value
                self._vectors[name] = vector.clone()

    @staticmethod
    def _first_vector(factor: Tensor) -> Tensor:
        """A unit vector (r) that is the same on every process and in every run."""
        generator = torch.Generator().manual_seed(0)
        vector = torch.randn(factor.shape[-1], generator=generator)
        return vector / vector.norm()


def takes_step_scale(optimizer: Optimizer) -> bool:
    """Whether an optimizer multiplies its updates by `step_scale[parameter]`."""
    return isinstance(getattr(optimizer, "step_scale", None), dict)
