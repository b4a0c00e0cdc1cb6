"""Which polynomials a Newton–Schulz iteration applies, and how many of them one Gram matrix can serve."""

from collections.abc import Sequence
from typing import Literal

Quintic = tuple[float, float, float]
"""a, b, c of the odd polynomial a·s + b·s³ + c·s⁵."""

Coefficients = Literal["paper", "polar_express"] | Quintic

PAPER: Quintic = (3.4445, -4.7750, 2.0315)
"""Of Spectron (arXiv 2602.12429) and Muon: the steepest at zero, values of about 0.7 to 1.2 in the end."""

POLAR_EXPRESS: tuple[Quintic, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
"""Of arXiv 2505.16932, listing 1: each the best after the ones before it on singular values from 0.001 to 1; the last
repeats."""

SAFETY = 1.01
"""Polar Express divides X and the argument of every polynomial but the last by it, so that rounding keeps below 1."""

AMPLIFICATION = 2e3
"""How far Π a² may grow before S is computed anew: the rounding of S on small singular values is multiplied by it."""


def polynomials(coefficients: Coefficients, steps: int) -> list[Quintic]:
    """The polynomials of `steps` steps.

    Raises:
        ValueError: an unknown name, or steps below 1.
    """
    if steps < 1:
        raise ValueError(f"Newton–Schulz takes at least 1 step, got {steps}")
    if coefficients == "polar_express":
        first, *others = [_of_smaller(step) for step in POLAR_EXPRESS[:-1]]
        published = [_of_smaller(first), *others, *[POLAR_EXPRESS[-1]] * steps]
        return published[:steps]
    if coefficients == "paper":
        return [PAPER] * steps
    if not isinstance(coefficients, Sequence) or isinstance(coefficients, str) or len(coefficients) != 3:
        raise ValueError(f"coefficients must be paper, polar_express or three numbers, got {coefficients!r}")
    return [coefficients] * steps


def _of_smaller(step: Quintic) -> Quintic:
    """The polynomial of s / SAFETY."""
    a, b, c = step
    return a / SAFETY, b / SAFETY**3, c / SAFETY**5


def rounds(steps: Sequence[Quintic]) -> list[list[Quintic]]:
    """The steps in runs that one Gram matrix can serve, the longest last: singular values differ most in the first."""
    runs: list[list[Quintic]] = []
    growth = 0.0
    for step in reversed(steps):
        growth *= step[0] ** 2
        if not runs or growth > AMPLIFICATION:
            runs.insert(0, [])
            growth = step[0] ** 2
        runs[0].insert(0, step)
    return runs
