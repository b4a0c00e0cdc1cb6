"""The search of one positive number, such as a learning rate, by factors."""

import math
from collections.abc import Callable


def around(start: float, loss: Callable[[float], float], factor: float = 2.0) -> dict[float, float]:
    """Loss by value: `start`, then on in either direction by `factor` until the best is not at an end.

    Args:
        start: the first value, positive.
        loss: what to minimize; infinite or NaN where it diverges, which ends that direction.
        factor: the ratio of neighboring values, above 1.

    Raises:
        ValueError: `start` is not positive or `factor` is not above 1.
    """
    if start <= 0 or factor <= 1:
        raise ValueError(f"around: start {start} must be positive and factor {factor} above 1")
    found = {start: _comparable(loss(start))}
    for step in (1 / factor, factor):
        value = start
        while found[value] == min(found.values()) < math.inf:
            value *= step
            found[value] = _comparable(loss(value))
    return found


def _comparable(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss
