"""The metric in which each factor of W = A Bᵀ is measured: what the other one makes of it."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrtrain.constraints.constraint import Constraint, NothingToHoldError
from lrtrain.constraints.factors import pairs_taken
from lrtrain.linalg import inverse_root, norm_bound
from lrtrain.linalg.flops import metric_flops
from lrtrain.optim.protocol import holders, stated


class PartnerMetric(Constraint):
    """Before each step, gives the optimizer of A a root T of (BᵀB)⁻¹, and that of B one of (AᵀA)⁻¹.

    A step ΔA moves W by ΔA Bᵀ, whose spectral norm is ‖ΔA (BᵀB)^½‖₂. `linalg.inverse_root` says which eigenvalues are
    not inverted. For an optimizer that is `strict` there is γ too, an upper bound of ‖T_A‖₂ ‖T_B‖₂.

    It holds the pairs whose optimizer takes roots, which is `lrtrain.optim.LoRAMuon`.

    Source: LoRA-Muon, arXiv 2606.12921.
    """

    held: dict[str, tuple[Tensor, Tensor]]
    """name -> (A, B) with A (out, r) and B (in, r), plain tensors or row-sharded DTensors."""

    def attach(self, model: nn.Module, optimizer: Optimizer) -> None:
        taking = holders(optimizer, "partner_root")
        if not taking:
            raise NothingToHoldError(
                "no optimizer takes the metric of a factor; use lrtrain.optim.LoRAMuon for model.optimizers.hidden or "
                "leave it out"
            )
        self.hold(pairs_taken(model, taking))

    def before_step(self, optimizer: Optimizer) -> None:
        """Sets the optimizer's roots.

        Raises:
            TypeError: no part of the optimizer that holds a factor takes them.
        """
        taking = holders(optimizer, "partner_root")
        for name, pair in self.held.items():
            if not all(factor in taking for factor in pair):
                raise TypeError(f"the partner metric needs an optimizer that takes roots for {name}")
        roots = inverse_root([factor.detach() for pair in self.held.values() for factor in pair])
        strict = any(stated(part, "strict") for part in taking.values())
        norms = norm_bound(roots) if strict else [torch.ones(())] * len(roots)
        for index, (a, b) in enumerate(self.held.values()):
            taking[a].partner_root[a], taking[b].partner_root[b] = roots[2 * index + 1], roots[2 * index]
            if strict:
                taking[a].cross_norm[a] = taking[b].cross_norm[b] = norms[2 * index] * norms[2 * index + 1]

    def step_flops(self, optimizer: Optimizer) -> int:
        strict = any(stated(part, "strict") for part in holders(optimizer, "partner_root").values())
        of_bounds = 6 * 2 if strict else 0  # r × r products of `linalg.norm_bound`
        return sum(metric_flops(*x.shape) + of_bounds * x.shape[1] ** 3 for pair in self.held.values() for x in pair)
