"""Functions of tall matrices, through their small Gram matrices. They need torch alone.

Each takes one matrix, a batch, a sequence of different shapes, or DTensors whose rows are sharded (FSDP2), in one call.
"""

from lrtrain.linalg.gaussian import gaussian_svd
from lrtrain.linalg.gram import gram, inner
from lrtrain.linalg.newton_schulz import Coefficients
from lrtrain.linalg.norm import norm_bound, spectral_norm
from lrtrain.linalg.orthonormal import orthonormality_error, orthonormalize, orthonormalize_
from lrtrain.linalg.polar import Precision, polar
from lrtrain.linalg.row_sharded import gathered, local, process_groups, spread, with_local
from lrtrain.linalg.tangent_space import tangent
from lrtrain.linalg.truncate import rank_for_energy, truncated_svd

__all__ = [
    "Coefficients",
    "Precision",
    "gathered",
    "gaussian_svd",
    "gram",
    "inner",
    "local",
    "norm_bound",
    "orthonormality_error",
    "orthonormalize",
    "orthonormalize_",
    "polar",
    "process_groups",
    "rank_for_energy",
    "spectral_norm",
    "spread",
    "tangent",
    "truncated_svd",
    "with_local",
]
