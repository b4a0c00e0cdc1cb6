"""Products of a batch of matrices by what is fastest on the device."""

import torch
from torch import Tensor

FEWEST = 1 << 21
"""Multiplications of one product from which oneDNN pays for being called matrix by matrix."""


def times_transposed(x: Tensor, y: Tensor) -> Tensor:
    """X Yᵀ (n, m, k) of X (n, m, r) and Y (n, k, r); with Y symmetric, X Y.

    torch multiplies float32 on a CPU with MKL, which on other makers' processors leaves AVX-512 unused; oneDNN, which
    it uses for bfloat16 and inside compiled layers, does not: 2.2 times as fast there, equal elsewhere.
    """
    if not _by_onednn(x, y):
        return x @ y.mT
    products = [torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "") for a, b in zip(x, y, strict=True)]
    return products[0].unsqueeze(0) if len(products) == 1 else torch.stack(products)


def plus_product(z: Tensor, x: Tensor, y: Tensor, beta: float, alpha: float = 1.0) -> Tensor:
    """β Z + α X Yᵀ (n, m, k), rounded once in bfloat16."""
    if not _by_onednn(x, y):
        return torch.baddbmm(z, x, y.mT, beta=beta, alpha=alpha)
    product = times_transposed(x, y)
    return (product if alpha == 1 else product.mul_(alpha)).add_(z, alpha=beta)


def _by_onednn(x: Tensor, y: Tensor) -> bool:
    few = x.shape[-2] * x.shape[-1] * y.shape[-2] < FEWEST
    return _ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32 and not few


def _has_onednn() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    one = torch.ones(1, 1)
    try:
        return bool(torch.ops.mkldnn._linear_pointwise(one, one, None, "none", [], "") == 1)
    except (AttributeError, RuntimeError, TypeError):  # not a public operator: another version may lack or change it
        return False


_ONEDNN = _has_onednn()
