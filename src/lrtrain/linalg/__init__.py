"""Functions of tall matrices, through their small Gram matrices. They need torch alone.

Each takes one matrix, a batch, a sequence of different shapes, or DTensors whose rows are sharded (FSDP2), in one call.
"""

from lrtrain.linalg.full_float32 import full_float32
from lrtrain.linalg.metric import inverse_root
from lrtrain.linalg.newton_schulz import Coefficients
from lrtrain.linalg.norm import norm_bound, spectral_norm
from lrtrain.linalg.orthonormal import orthonormality_error, orthonormalize, orthonormalize_, project_to_tangent
from lrtrain.linalg.polar import Precision, polar, polar_in_metric
from lrtrain.linalg.row_sharded import gathered, gram, inner, local, process_groups, spread, with_local
from lrtrain.linalg.truncated_svd import energy_rank, gaussian_svd, product_svd, rank_for_energy, truncated_svd

__all__ = [
    "Coefficients",
    "Precision",
    "energy_rank",
    "full_float32",
    "gathered",
    "gaussian_svd",
    "gram",
    "inner",
    "inverse_root",
    "local",
    "norm_bound",
    "orthonormality_error",
    "orthonormalize",
    "orthonormalize_",
    "polar",
    "polar_in_metric",
    "process_groups",
    "product_svd",
    "project_to_tangent",
    "rank_for_energy",
    "spectral_norm",
    "spread",
    "truncated_svd",
    "with_local",
]
