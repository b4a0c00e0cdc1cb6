"""The parametric law L(N, D) = E + A / N^α + B / D^β, by a robust fit."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, nnls
from scipy.special import huber, logsumexp

from lrtrain.studies.scaling.isoflop_fit import between
from lrtrain.studies.scaling.points import Array, Points

DELTA = 1e-3
"""Residual of the logarithm at which Huber's loss turns from square to linear (arXiv 2203.15556, appendix D.3)."""

EXPONENTS = (0.1, 0.25, 0.4, 0.6, 0.9, 1.3)
LIMIT = 4.0
NAMES = ("E", "A", "alpha", "B", "beta")
POINTS = 6
"""Points that the fit needs: one more than it has parameters."""


@dataclass(frozen=True)
class Parametric:
    """L(N, D) = E + A / N^α + B / D^β in nats per token, and its draws (resamples, 5) in the order of `NAMES`.

    `at_edge` says that an exponent went to an end of its range: the points do not determine the law.
    """

    values: Array
    draws: Array
    at_edge: bool

    def __call__(self, parameters: Array, tokens: Array) -> Array:
        E, A, alpha, B, beta = self.values
        return E + A / parameters**alpha + B / tokens**beta

    def intervals(self, confidence: float) -> dict[str, tuple[float, float]]:
        return {name: between(self.draws[:, index], confidence) for index, name in enumerate(NAMES)}

    def exponents(self) -> tuple[float, float]:
        """a = β / (α + β) and b = α / (α + β), of N_opt ∝ C^a and D_opt ∝ C^b (arXiv 2203.15556, equation 4)."""
        return _exponents(self.values)

    def exponent_intervals(self, confidence: float) -> tuple[tuple[float, float], tuple[float, float]]:
        a, b = _exponents(self.draws.T)
        return between(a, confidence), between(b, confidence)


def fit_parametric(points: Points, resamples: int = 200, seed: int = 0) -> Parametric:
    """Minimizes Σ Huber_δ(ln L(N, D) − ln L) over e = ln E, a = ln A, b = ln B, α and β, by L-BFGS.

    ln L(N, D) is a log-sum-exp of e, a − α ln N and b − β ln D. The starts are a grid over α and β; at each, E, A and
    B come from nonnegative least squares, in which the law is linear. Residuals are divided by δ, so that the
    optimizer's tolerances mean something (a sum of δ² ends it too soon: arXiv 2404.10102).

    The bootstrap resamples the residuals of ln L, times √(n / (n − 5)), and refits from the optimum.

    Raises:
        ValueError: less than six points.

    Source: approach 3 of arXiv 2203.15556.
    """
    count = len(points.loss)
    if count < POINTS:
        raise ValueError(f"the parametric law has five parameters and needs {POINTS} points, got {count}")
    problem = _Problem(points)
    target = np.log(points.loss)
    best = min((problem.solve(start, target) for start in problem.starts(points.loss)), key=lambda found: found[1])[0]
    fitted = problem.predict(best)[0]
    random = np.random.default_rng(seed)
    pool = (target - fitted) * np.sqrt(count / (count - 5))
    draws = [problem.solve(best, fitted + random.choice(pool, count))[0] for _ in range(resamples)]
    at_edge = bool(np.any(best[3:] < 1e-6) or np.any(best[3:] > LIMIT - 1e-6))
    return Parametric(problem.values(best), np.array([problem.values(draw) for draw in draws]), at_edge)


class _Problem:
    """The objective over (e, a, b, α, β), with ln N and ln D centered, so that a and b do not depend on the slopes."""

    def __init__(self, points: Points) -> None:
        logs = np.log(points.parameters), np.log(points.tokens)
        self.centers = [float(log.mean()) for log in logs]
        self.n, self.d = (log - center for log, center in zip(logs, self.centers, strict=True))

    def starts(self, loss: Array) -> list[Array]:
        found = []
        for alpha in EXPONENTS:
            for beta in EXPONENTS:
                design = np.stack([np.ones_like(loss), np.exp(-alpha * self.n), np.exp(-beta * self.d)], axis=1)
                linear = np.maximum(nnls(design, loss)[0], 1e-3 * loss.mean())  # a logarithm needs more than zero
                found.append(np.array([*np.log(linear), alpha, beta]))
        return found

    def predict(self, theta: Array) -> tuple[Array, Array]:
        """ln L (n), and the shares (3, n) of the three terms in L."""
        e, a, b, alpha, beta = theta
        terms = np.stack([np.full_like(self.n, e), a - alpha * self.n, b - beta * self.d])
        total = logsumexp(terms, axis=0)
        return total, np.exp(terms - total)

    def solve(self, start: Array, target: Array) -> tuple[Array, float]:
        """The minimum nearest to a start, and the objective there."""

        def objective(theta: Array) -> tuple[float, Array]:
            predicted, shares = self.predict(theta)
            residual = (predicted - target) / DELTA
            value = huber(1.0, residual).sum()
            slope = np.clip(residual, -1, 1) / DELTA
            e, a, b = shares * slope
            return float(value), np.array([e.sum(), a.sum(), b.sum(), -(a * self.n).sum(), -(b * self.d).sum()])

        bounds = [(None, None)] * 3 + [(0.0, LIMIT)] * 2
        options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-12, "gtol": 1e-8}
        found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        return found.x, float(found.fun)

    def values(self, theta: Array) -> Array:
        """E, A, α, B, β of the law in N and D themselves."""
        e, a, b, alpha, beta = theta
        A, B = np.exp(a + alpha * self.centers[0]), np.exp(b + beta * self.centers[1])
        return np.array([np.exp(e), A, alpha, B, beta])


def _exponents(values: Array) -> tuple:
    _, _, alpha, _, beta = values
    return beta / (alpha + beta), alpha / (alpha + beta)
