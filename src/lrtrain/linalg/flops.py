"""FLOPs of this package's functions of a matrix (m, r) with m ≥ r, a multiply-add counted as two."""

from lrtrain.linalg.newton_schulz import Coefficients, polynomials, rounds
from lrtrain.linalg.polar import Precision, on_itself


def newton_schulz_flops(
    m: int, r: int, steps: int, coefficients: Coefficients = "paper", precision: Precision = "float32"
) -> int:
    """Counts `linalg.polar` on whole matrices.

    Through Gram matrices: 4 m r² for each (itself and the product with X) plus 2 r³ per r × r product: S² in every
    step, Π Q from a run's second step on, Q S Q (two) before each further step. On X itself: 4 m r² + 2 r³ per step.
    """
    m, r = max(m, r), min(m, r)
    if on_itself(m, r, precision):
        return steps * direct_newton_schulz_flops(m, r)
    runs = rounds(polynomials(coefficients, steps))
    small = sum(len(run) + 3 * (len(run) - 1) for run in runs)
    return len(runs) * 4 * m * r * r + small * 2 * r**3


def direct_newton_schulz_flops(m: int, r: int) -> int:
    """One step on X itself, X (a I + b S + c S²) with S = XᵀX, as `torch.optim.Muon` does it."""
    return 4 * m * r * r + 2 * r**3


def power_iteration_flops(m: int, r: int) -> int:
    """One step of `linalg.spectral_norm`: X v and Xᵀ u."""
    return 4 * m * r


def norm_bound_flops(m: int, r: int) -> int:
    """`linalg.norm_bound`: the Gram matrix, squared five times."""
    return 2 * m * r * r + 5 * 2 * r**3


def metric_flops(m: int, r: int) -> int:
    """`linalg.inverse_root`: Gram matrix 2 m r², Cholesky r³/3, inverse r³/3."""
    return 2 * m * r * r + 2 * r**3 // 3


def in_metric_flops(m: int, r: int, precision: Precision = "float32") -> int:
    """What `linalg.polar_in_metric` adds to `linalg.polar`: four r × r products, or X T and O Tᵀ themselves."""
    return 4 * m * r * r if on_itself(m, r, precision) else 4 * 2 * r**3


def retraction_flops(m: int, r: int) -> int:
    """`linalg.orthonormalize` by one Cholesky step: Gram matrix 2 m r², Cholesky r³/3, inverse r³/3, X R⁻¹ 2 m r²."""
    return 4 * m * r * r + 2 * r**3 // 3


def tangent_flops(m: int, r: int) -> int:
    """`linalg.project_to_tangent`: XᵀZ and X sym(XᵀZ)."""
    return 4 * m * r * r
