"""Retraction of W = V diag(s) Uᵀ that leaves W as it is."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrtrain.constraints.constraint import NO_SPECTRAL, Constraint, NothingToHoldError
from lrtrain.constraints.factors import spectral_triples
from lrtrain.constraints.manifold import transport
from lrtrain.linalg import full_float32, gathered, local, orthonormalize_, spread
from lrtrain.linalg.flops import retraction_flops, tangent_flops
from lrtrain.optim.protocol import ORDERS, moments, require_moments


class FunctionPreservingRetraction(Constraint):
    """After each step, writes the same W = V diag(s) Uᵀ with orthonormal bases: its singular value decomposition.

    With U = Q_U R_U and V = Q_V R_V, W = Q_V C Q_Uᵀ of the core C = R_V diag(s) R_Uᵀ (k, k). From C = P Σ Zᵀ

        U ← Q_U Z,   V ← Q_V P,   s ← Σ (descending, none negative), the diagonal of Z not negative.

    QR alone would drop R_U and R_V, and with them the part of the update inside the span; here it arrives in s and in
    the rotation of the bases. That rotation may be large where singular values are close, and it reorders them, so the
    optimizer's averages follow it. With N_U = R_Uᵀ Z and N_V = R_Vᵀ P, the gradients at the new triple are exactly
    G_U N_U and G_V N_V for the same dL/dW, hence

        M_U ← M_U N_U,   M_V ← M_V N_V,   v ← v (N ∘ N),   M_s ← Fᵀ M_s,   v_s ← (F ∘ F)ᵀ v_s

    for first moments M, second moments v and F = N_U ∘ N_V. The last three are exact for columns that are reordered or
    change sign; in between they neglect correlations between columns, which these averages do not know.

    Args:
        transport: Also project the first moments of U and V to the new tangent space. That drops what they know of the
            update inside the span, so it belongs with gradients that are projected too (`TangentProjection`).
    """

    stands_in_for = "StiefelRetraction"
    held: dict[str, tuple[Tensor, Tensor, Tensor]]
    """name -> (U, s, V) with U (in, k), s (k), V (out, k), plain tensors or row-sharded DTensors."""

    def __init__(self, transport: bool = False) -> None:
        self.transport = transport
        self._optimizer: Optimizer | None = None

    def attach(self, model: nn.Module, optimizer: Optimizer) -> None:
        triples = spectral_triples(model)
        if not triples:
            raise NothingToHoldError(NO_SPECTRAL)
        named = {f"{name}.{part}": p for name, triple in triples.items() for part, p in zip("UsV", triple, strict=True)}
        require_moments(optimizer, named, *ORDERS)
        self.hold(triples)

    def before_step(self, optimizer: Optimizer) -> None:
        """Takes note of the optimizer that holds the moments."""
        self._optimizer = optimizer

    @torch.no_grad()
    @full_float32()
    def after_step(self) -> None:
        """Puts every triple back on the manifold, and with it the moments of the optimizer that `before_step` named."""
        by_rank: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
        for triple in self.held.values():
            by_rank[triple[1].shape[0]].append(triple)
        us, vs = ([triple[i] for group in by_rank.values() for triple in group] for i in (0, 2))
        corners = orthonormalize_([*us, *vs])
        start = 0
        for group in by_rank.values():
            u, s, v = (list(x) for x in zip(*group, strict=True))
            r_u, r_v = (torch.stack(corners[at : at + len(group)]) for at in (start, start + len(us)))
            start += len(group)
            p, sigma, z = _decompose(r_u, gathered(torch.stack(s)), r_v)
            _multiply(u, z)
            _multiply(v, p)
            _write_whole(s, sigma)
            if self._optimizer is not None:
                n_u, n_v = r_u.mT @ z, r_v.mT @ p
                _follow(self._optimizer, u, n_u)
                _follow(self._optimizer, v, n_v)
                _follow_values(self._optimizer, s, n_u * n_v)
        if self.transport and self._optimizer is not None:
            transport(self._optimizer, [*us, *vs])

    def step_flops(self, optimizer: Optimizer) -> int:
        """QR of both bases, the core 4 k³, its singular value decomposition about 22 k³, N_U and N_V 4 k³, and the
        products of both bases and four moments, as Adam's, with k × k matrices.

        Source: Golub, Van Loan, section 8.6, of the decomposition.
        """
        shapes = [(u.shape[0], v.shape[0], s.shape[0]) for u, s, v in self.held.values()]
        spent = sum(retraction_flops(m, k) + retraction_flops(n, k) + 30 * k**3 for m, n, k in shapes)
        spent += sum(3 * 2 * (m + n) * k * k for m, n, k in shapes)
        return spent + self.transport * sum(tangent_flops(m, k) + tangent_flops(n, k) for m, n, k in shapes)


def _decompose(r_u: Tensor, s: Tensor, r_v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P (n, k, k), σ (n, k) and Z (n, k, k) of R_V diag(s) R_Uᵀ = P diag(σ) Zᵀ, computed in float64 against drift.

    The sign of each pair of columns is the one with which Z stays nearest to I.
    """
    core = (r_v.double() * s.double().unsqueeze(-2)) @ r_u.double().mT
    p, sigma, zt = torch.linalg.svd(core)
    sign = torch.where(zt.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(core).unsqueeze(-2)
    return (p * sign).to(r_u), sigma.to(r_u), (zt.mT * sign).to(r_u)


def _multiply(matrices: Sequence[Tensor], factors: Tensor) -> None:
    """X ← X F, for matrices X (m, k), whole or sharded by rows, and factors F (n, k, k)."""
    for x, factor in zip(matrices, factors.unbind(), strict=True):
        rows = local(x)
        rows.copy_(rows.to(factor) @ factor)


def _follow(optimizer: Optimizer, parameters: Sequence[Tensor], turns: Tensor) -> None:
    """M ← M N and v ← v (N ∘ N) for parameters (m, k) and N (n, k, k)."""
    for order, factors in zip(ORDERS, (turns, turns.square()), strict=True):
        found = moments(optimizer, parameters, order)
        if found:
            _multiply([moment for _, moment in found], factors[[index for index, _ in found]])


def _follow_values(optimizer: Optimizer, parameters: Sequence[Tensor], shares: Tensor) -> None:
    """M ← Fᵀ M and v ← (F ∘ F)ᵀ v for parameters (k) and F (n, k, k)."""
    for order, factors in zip(ORDERS, (shares, shares.square()), strict=True):
        found = moments(optimizer, parameters, order)
        if found:
            vectors = [moment for _, moment in found]
            chosen = factors[[index for index, _ in found]]
            _write_whole(vectors, (chosen.mT @ gathered(torch.stack(vectors)).to(factors).unsqueeze(-1)).squeeze(-1))


def _write_whole(vectors: Sequence[Tensor], values: Tensor) -> None:
    """Writes values (n, k), which every process holds whole, into vectors (k); nothing is communicated."""
    for vector, value in zip(vectors, values.unbind(), strict=True):
        vector.copy_(spread(value, vector))
