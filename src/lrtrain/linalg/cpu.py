"""Products of a batch of matrices by what is fastest on the device."""

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

FEWEST = 1 << 22
"""Multiplications of one product from which oneDNN pays for being called matrix by matrix."""

FEWEST_TURNED = 1 << 24
"""The same for products over the rows of both matrices."""

IMAGES = 16
"""Images that the rows are divided into: the fewest for which torch takes oneDNN with one thread as with more."""

LONGEST = 1 << 13
"""Rows that one convolution sums, at least: the rounding grows with them."""


def times_transposed(x: Tensor, y: Tensor) -> Tensor:
    """X Yᵀ (n, m, k) of X (n, m, r) and Y (n, k, r).

    torch multiplies float32 on a CPU with MKL, which on other makers' processors leaves AVX-512 unused; oneDNN, which
    it uses for bfloat16 and inside compiled layers, does not: 2.2 times as fast there, equal elsewhere.
    """
    if not _by_onednn(x, y.shape[-2]):
        return torch.bmm(x, y.mT)
    products = [torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "") for a, b in zip(x, y, strict=True)]
    return _stacked(products)


def times_symmetric(x: Tensor, y: Tensor) -> Tensor:
    """X Y (n, m, r) of X (n, m, r) and a symmetric Y (n, r, r)."""
    return times_transposed(x, y) if _by_onednn(x, y.shape[-1]) else torch.bmm(x, y)


def plus_product(z: Tensor, x: Tensor, y: Tensor, beta: float, alpha: float = 1.0) -> Tensor:
    """β Z + α X Y (n, m, r) of a symmetric Y (n, r, r), rounded once in bfloat16."""
    if not _by_onednn(x, y.shape[-2]):
        return torch.baddbmm(z, x, y, beta=beta, alpha=alpha)
    product = times_symmetric(x, y)
    return (product if alpha == 1 else product.mul_(alpha)).add_(z, alpha=beta)


def transposed_product(x: Tensor, y: Tensor) -> Tensor:
    """XᵀY (n, k, r) of tall X (n, m, k) and Y (n, m, r).

    oneDNN's product would have both turned first, which takes up to half the time. So the rows become the pixels of
    images with k and r channels, and XᵀY the gradient of the weight of a 1 × 1 convolution between them.
    """
    if x.shape[-2] < IMAGES or not _by_onednn(x, y.shape[-1], FEWEST_TURNED):
        return torch.bmm(x.mT, y)
    if x.mT.is_contiguous() and y.mT.is_contiguous():
        return times_transposed(x.mT, y.mT)
    return _stacked([_by_convolution(a, b) for a, b in zip(x, y, strict=True)])


def _by_convolution(x: Tensor, y: Tensor) -> Tensor:
    """XᵀY (k, r) of X (m, k) and Y (m, r), summed in runs that are long enough to pay and short enough to be exact."""
    runs = max(1, x.shape[0] // max(LONGEST, FEWEST_TURNED // (x.shape[-1] * y.shape[-1])))
    product, *others = (_weight_gradient(a, b) for a, b in zip(x.tensor_split(runs), y.tensor_split(runs), strict=True))
    for other in others:
        product += other
    return product


def _weight_gradient(x: Tensor, y: Tensor) -> Tensor:
    """The same by one convolution."""
    most = x.shape[0] // IMAGES * IMAGES
    output, image = (a[:most].reshape(IMAGES, -1, 1, a.shape[-1]).permute(0, 3, 1, 2) for a in (x, y))
    product = conv2d_weight(image, (x.shape[-1], y.shape[-1], 1, 1), output)[:, :, 0, 0]
    return product.addmm_(x[most:].T, y[most:]) if most < x.shape[0] else product


def _stacked(products: list[Tensor]) -> Tensor:
    return products[0].unsqueeze(0) if len(products) == 1 else torch.stack(products)


def _by_onednn(x: Tensor, columns: int, fewest: int = FEWEST) -> bool:
    """Whether oneDNN pays for products of matrices of a stack with as many entries, times so many columns, each."""
    many = x.numel() * columns >= fewest * max(1, x.shape[0])
    return many and _ONEDNN and x.dtype == torch.float32 and x.device.type == "cpu"


def _has_onednn() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    one = torch.ones(1, 1)
    try:
        return bool(torch.ops.mkldnn._linear_pointwise(one, one, None, "none", [], "") == 1)
    except (AttributeError, RuntimeError, TypeError):  # not a public operator: another version may lack or change it
        return False


_ONEDNN = _has_onednn()
