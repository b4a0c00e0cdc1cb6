"""Matrix products of float32 matrices in float32, whatever torch is told elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Within it, or within a function that it decorates, no product rounds its float32 inputs to TF32 or bfloat16.

    `torch.set_float32_matmul_precision("high")`, which suits a model's products, leaves orthonormal columns 1e-3 from
    orthonormal and makes a bound of a norm no bound.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    chosen = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in zip(backends, chosen, strict=True):
            backend.fp32_precision = precision
