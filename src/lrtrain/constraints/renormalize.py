"""Spectral renormalization: the step scale that bounds ‖ΔW‖₂ of W = A Bᵀ."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrtrain.constraints.constraint import Constraint, NothingToHoldError
from lrtrain.constraints.factors import pairs_taken
from lrtrain.linalg import norm_bound, spectral_norm
from lrtrain.linalg.flops import norm_bound_flops, power_iteration_flops
from lrtrain.optim.protocol import holders, stated

FIRST_STEPS = 20
"""Power steps of the first measurement, which starts from a random vector; later calls go on from the last one."""


class SpectralRenormalization(Constraint):
    """Before each step, measures σ_A = ‖A‖₂ and σ_B = ‖B‖₂ and gives both factors the scale 1/(σ_A + σ_B + 1).

    With ‖O‖₂ ≤ 1 and ρ = η · scale ≤ 1 the product then moves by
    ‖ΔW‖₂ ≤ ρ σ_A + ρ σ_B + ρ² ≤ η. One power step a call follows the norms, the vector is kept between calls. For an
    optimizer that is `strict` the norms are upper bounds instead.

    It holds the pairs whose optimizer takes step scales.

    Source: Spectron, arXiv 2602.12429, Algorithms 1 and 3.
    """

    held: dict[str, tuple[Tensor, Tensor]]
    """name -> (A, B) with A (out, r) and B (in, r), plain tensors or row-sharded DTensors."""

    def __init__(self) -> None:
        self._vectors: dict[str, Tensor] = {}
        self._sigma: dict[str, Tensor] = {}

    def attach(self, model: nn.Module, optimizer: Optimizer) -> None:
        held = pairs_taken(model, holders(optimizer, "step_scale"))
        if not held:
            raise NothingToHoldError(
                "the factors' optimizer takes no step scales; use lrtrain.optim.Spectron for model.optimizers.hidden "
                "or leave it out"
            )
        self.hold(held)

    def before_step(self, optimizer: Optimizer) -> None:
        """Measures all factors and sets the optimizer's scales.

        Raises:
            TypeError: no part of the optimizer that holds a factor takes step scales.
        """
        scaled = holders(optimizer, "step_scale")
        for name, pair in self.held.items():
            if not all(factor in scaled for factor in pair):
                raise TypeError(f"spectral renormalization needs an optimizer that takes step scales for {name}")
        self._measure(strict={name for name, (a, _) in self.held.items() if stated(scaled[a], "strict")})
        for name, pair in self.held.items():
            scale = 1 / (self._sigma[f"{name}.A"] + self._sigma[f"{name}.B"] + 1)
            for factor in pair:
                scaled[factor].step_scale[factor] = scale

    def step_flops(self, optimizer: Optimizer) -> int:
        scaled = holders(optimizer, "step_scale")
        return sum(
            (norm_bound_flops if stated(scaled[x], "strict") else power_iteration_flops)(*x.shape)
            for pair in self.held.values()
            for x in pair
        )

    def norms(self) -> dict[str, tuple[Tensor, Tensor]]:
        """name -> (σ_A, σ_B) of the last measurement, 0-d tensors."""
        return {name: (self._sigma[f"{name}.A"], self._sigma[f"{name}.B"]) for name in self.held if self._sigma}

    def state_dict(self) -> dict[str, Any]:
        return {"vectors": dict(self._vectors)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._vectors = dict(state_dict["vectors"])

    def _measure(self, strict: set[str]) -> None:
        factors = {f"{name}.{side}": x for name, pair in self.held.items() for side, x in zip("AB", pair, strict=True)}
        bounded = [name for name in factors if name.rpartition(".")[0] in strict]
        followed = [name for name in factors if name not in set(bounded)]
        fresh = any(name not in self._vectors for name in followed)
        start = [
            (self._vectors[n] if n in self._vectors else _first_vector(factors[n])).to(factors[n].device)
            for n in followed
        ]
        sigma, vectors = spectral_norm(
            [factors[name].detach() for name in followed], start, steps=FIRST_STEPS if fresh else 1
        )
        self._vectors |= dict(zip(followed, vectors, strict=True))
        bounds = norm_bound([factors[name].detach() for name in bounded])
        self._sigma = dict(zip([*followed, *bounded], [*sigma, *bounds], strict=True))


def _first_vector(factor: Tensor) -> Tensor:
    """A unit vector (r) that is the same on every process and in every run."""
    vector = torch.randn(factor.shape[-1], generator=torch.Generator().manual_seed(0))
    return vector / vector.norm()
