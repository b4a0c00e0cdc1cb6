"""Largest singular values, of a factor and of a product of factors."""

import torch
from torch import Tensor


@torch.no_grad()
def spectral_norm(x: Tensor, v: Tensor, steps: int = 1) -> tuple[Tensor, Tensor]:
    """Estimate ‖X‖₂ by power iteration from the right vector v: u = Xv/‖Xv‖, σ = ‖Xᵀu‖, v ← Xᵀu/σ.

    The estimate never exceeds ‖X‖₂ and never falls from one step to the next. Keep the returned vector and pass it to
    the next call: while X changes slowly, one step a call follows the norm.

    Args:
        x: (…, m, r).
        v: (…, r), unit vectors; not modified.
        steps: power steps in this call.

    Returns:
        σ (…) and the new unit vectors (…, r), float32 (float64 for a float64 input). σ of a zero matrix is 0, and its
        v is kept.

    Source: Spectron, arXiv 2602.12429, Algorithm 3.
    """
    work = x if x.dtype == torch.float64 else x.float()
    v = v.to(work.dtype)
    tiny = torch.finfo(work.dtype).tiny
    sigma = work.new_zeros(work.shape[:-2])
    for _ in range(steps):
        u = work @ v.unsqueeze(-1)
        u = u / torch.linalg.vector_norm(u, dim=-2, keepdim=True).clamp_min(tiny)
        w = (work.mT @ u).squeeze(-1)
        sigma = torch.linalg.vector_norm(w, dim=-1)
        v = torch.where((sigma > tiny).unsqueeze(-1), w / sigma.clamp_min(tiny).unsqueeze(-1), v)
    return sigma, v


@torch.no_grad()
def product_norm(*pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Exact ‖Σᵢ Aᵢ Bᵢᵀ‖₂ from thin factors, without forming the (out, in) product.

    With A = [A₁ A₂ …] and B = [B₁ B₂ …], σ(A Bᵀ)² is the largest eigenvalue of R_A R_Bᵀ R_B R_Aᵀ for the R factors of
    A and B; everything after the two QR is (Σr, Σr). The change of W = A Bᵀ to A' B'ᵀ is
    `product_norm((A', B'), (-A, B))`.

    Args:
        pairs: tensors (out, r) and (in, r); computed in float64.

    Returns:
        0-d float64 tensor.
    """
    a = torch.cat([pair[0] for pair in pairs], dim=-1).double()
    b = torch.cat([pair[1] for pair in pairs], dim=-1).double()
    r_a = torch.linalg.qr(a, mode="r").R
    r_b = torch.linalg.qr(b, mode="r").R
    return torch.linalg.matrix_norm(r_a @ r_b.mT, ord=2)
