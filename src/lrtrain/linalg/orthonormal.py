"""Orthonormal bases by QR with a positive diagonal."""

import torch
from torch import Tensor


@torch.no_grad()
def orthonormalize(x: Tensor) -> tuple[Tensor, Tensor]:
    """The QR factorisation X = Q R whose R has a non-negative diagonal, which makes it unique and continuous.

    Columns of Householder's Q are multiplied by sign(diag R), where sign(0) counts as +1.

    Args:
        x: (…, m, r) with m ≥ r, any floating dtype.

    Returns:
        Q (…, m, r) with QᵀQ = I, contiguous, in x's dtype, and R (…, r, r) upper triangular in the dtype of the
        computation: float32 (float64 for a float64 input).

    Source: SCT, arXiv 2604.00733, the retraction.
    """
    work = x if x.dtype == torch.float64 else x.float()
    q, r = torch.linalg.qr(work)
    sign = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(work.dtype)
    return (q * sign.unsqueeze(-2)).to(x.dtype).contiguous(), r * sign.unsqueeze(-1)


@torch.no_grad()
def orthonormality_error(x: Tensor) -> Tensor:
    """max |XᵀX − I| over the columns of X (…, m, r), as float32 (float64 for a float64 input) of shape (…)."""
    work = x if x.dtype == torch.float64 else x.float()
    gram = work.mT @ work
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return (gram - eye).abs().amax(dim=(-2, -1))
