"""Functions of tall matrices: polar factor, spectral norm, orthonormal basis, truncated SVD. They need torch alone."""

from lrtrain.linalg.gaussian import gaussian_svd
from lrtrain.linalg.norm import product_norm, spectral_norm
from lrtrain.linalg.orthonormal import orthonormality_error, orthonormalize
from lrtrain.linalg.polar import polar
from lrtrain.linalg.truncate import rank_for_energy, truncated_svd

__all__ = [
    "gaussian_svd",
    "orthonormality_error",
    "orthonormalize",
    "polar",
    "product_norm",
    "rank_for_energy",
    "spectral_norm",
    "truncated_svd",
]
