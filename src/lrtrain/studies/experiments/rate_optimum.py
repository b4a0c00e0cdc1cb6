"""Where the loss over the learning rate is lowest, and how far that moves from size to size."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

NEAR = 0.1
"""Nats above the lowest loss up to which a learning rate counts as a good one."""


@dataclass(frozen=True)
class Optimum:
    """The best learning rate.

    Attributes:
        lr: Of the vertex of the parabola in ln lr through the best rate and its neighbors; the best rate itself where
            it has no two finite ones.
        loss: The lowest one measured, infinite if no rate gave any.
        end: `lowest` or `highest` where the best is the last of several rates in that direction: then the optimum may
            lie beyond it.
        good: The lowest and highest rate around the best one whose losses are within `NEAR` of it.
    """

    lr: float
    loss: float
    end: str
    good: tuple[float, float]


def optimum(losses: Mapping[float, float]) -> Optimum:
    """The best learning rate of a curve, rate -> loss, infinite where it diverged."""
    rates = sorted(losses)
    values = [losses[lr] for lr in rates]
    best = int(np.argmin(values))
    if math.isinf(values[best]):
        return Optimum(math.nan, math.inf, "", (math.nan, math.nan))
    end = "" if len(rates) == 1 else {0: "lowest", len(rates) - 1: "highest"}.get(best, "")
    around = slice(best - 1, best + 2)
    lr = rates[best]
    if 0 < best < len(rates) - 1 and all(map(math.isfinite, values[around])):
        x = np.log(rates[around])
        square, slope, _ = np.polyfit(x - x[1], values[around], 2)
        lr = math.exp(float(np.clip(x[1] - slope / (2 * square), x[0], x[2]))) if square > 0 else lr
    near = [value <= values[best] + NEAR for value in values]
    first, last = best, best
    while first > 0 and near[first - 1]:
        first -= 1
    while last < len(rates) - 1 and near[last + 1]:
        last += 1
    return Optimum(lr, values[best], end, (rates[first], rates[last]))


def lost_at(losses: Mapping[float, float], lr: float) -> float:
    """How far the loss at a learning rate, interpolated in ln lr, lies above the lowest; NaN outside of the curve."""
    rates = sorted(losses)
    if not rates[0] <= lr <= rates[-1]:
        return math.nan
    return float(np.interp(math.log(lr), np.log(rates), [losses[rate] for rate in rates])) - min(losses.values())


@dataclass(frozen=True)
class Movement:
    """How the best learning rate moves over one axis.

    Attributes:
        factor: The largest best rate over the smallest.
        least: The factor is a lower end: at some size the best was the last rate tried.
        lost: The most nats that a size loses at the best rate of the size that the other axes are searched at; NaN
            where that rate was not tried there.
    """

    factor: float
    least: bool
    lost: float


def movement(curves: Sequence[Mapping[float, float]], center: Mapping[float, float]) -> Movement:
    """Compares the curves of one axis, of which `center` is one."""
    found = [optimum(curve) for curve in curves]
    rates = [one.lr for one in found]
    lost = [lost_at(curve, optimum(center).lr) for curve in curves]
    factor = math.nan if any(map(math.isnan, rates)) else max(rates) / min(rates)
    return Movement(factor, any(one.end for one in found), math.nan if any(map(math.isnan, lost)) else max(lost))
