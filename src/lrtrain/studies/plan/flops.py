"""FLOPs of a training step beside those of the forward pass, a multiply-add counted as two.

The backward pass is twice the forward pass (arXiv 2204.02311, appendix B), and activation checkpointing computes the
blocks once more. What follows is of the optimizer and the constraints, once a step, however many tokens it has; of a
matrix (m, r) with m ≥ r.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lrtrain.linalg import Coefficients, Precision
from lrtrain.linalg.newton_schulz import polynomials, rounds
from lrtrain.linalg.polar import LOW_RANK, SQUARE

ELEMENTWISE = 15
"""Of Adam a number: weight decay 2, both averages 3 + 4, their corrections and root 3, the update 3."""
MOMENTUM = 5
"""Of an averaged gradient and the update a number; one more average, of squares, is `SQUARES`."""
SQUARES = 6


def newton_schulz_flops(
    m: int, r: int, steps: int, coefficients: Coefficients = "paper", precision: Precision = "float32"
) -> int:
    """`linalg.polar` of whole matrices: the products of its Gram form, or of the direct one where m is little above r.

    For each Gram matrix 2 m r² and as much again for the product with X; of the r × r products S² a step, Π Q from the
    second step of a run on, and Q S Q (two) before each further step, 2 r³ each. Directly 4 m r² + 2 r³ a step.
    """
    m, r = max(m, r), min(m, r)
    if m < SQUARE[precision] * r:
        return steps * direct_newton_schulz_flops(m, r)
    runs = rounds(polynomials(coefficients, steps), precision if r > LOW_RANK else "float32")
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


def retraction_flops(m: int, r: int) -> int:
    """QR by one Cholesky step: the Gram matrix 2 m r², Cholesky r³/3, the inverse r³/3, and X R⁻¹ 2 m r²."""
    return 4 * m * r * r + 2 * r**3 // 3


def preserving_flops(m: int, n: int, k: int) -> int:
    """The function-preserving retraction of U (m, k), s, V (n, k), with the moments of Adam.

    QR of both, the core 4 k³, its singular value decomposition about 22 k³ (Golub, Van Loan, section 8.6), N_U and N_V
    4 k³, and the products of both bases and four moments with k × k matrices.
    """
    return retraction_flops(m, k) + retraction_flops(n, k) + 30 * k**3 + 3 * 2 * (m + n) * k * k


def optimizer_flops(name: str, group: Mapping[str, Any], parameter: Tensor) -> int:
    """One step of an optimizer on one parameter; of a class that is not known here, that of Adam.

    Args:
        name: The class.
        group: Its settings.
        parameter: Of any device.
    """
    numbers = parameter.numel()
    if name == "SGD":
        return (4 if group["momentum"] else 2) * numbers
    if name not in ("Spectron", "Stiefel", "Muon"):
        return ELEMENTWISE * numbers
    m, r = sorted(parameter.shape, reverse=True)
    flops = (MOMENTUM + 3 * bool(group["nesterov"])) * numbers
    if name == "Muon":
        return flops + int(group["ns_steps"]) * direct_newton_schulz_flops(m, r)
    if name == "Stiefel" and group["direction"] == "adam":
        return flops + SQUARES * numbers
    if group.get("orthogonalize", True):
        asked = {key: group[key] for key in ("coefficients", "precision") if key in group}
        flops += newton_schulz_flops(m, r, group["ns_steps"], **asked)
    return flops
