"""The search of one positive number by factors, and what is run at its best value with all seeds."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

AGAIN = 3
"""How often a search whose first value diverges begins anew, each time at a quarter of it."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Best(Generic[Result]):
    """What a search found.

    Attributes:
        rates: Learning rate -> loss with the first seed; infinite where it gave none.
        lr: The best of them.
        results: Of the runs at that rate, one a seed; the first seed's alone where no rate of a search gave a loss.
    """

    rates: dict[float, float]
    lr: float
    results: list[Result]


def best_over_seeds(
    run: Callable[[float, int], Result],
    loss: Callable[[Result], float],
    start: float,
    seeds: Sequence[int],
    search: bool = True,
    pool: Executor | None = None,
) -> Best[Result]:
    """Searches the learning rate on the first seed, by factors of two, and runs the other seeds at the best one.

    A search whose first rate diverges begins again at a quarter of it.

    Args:
        run: Runs one learning rate with one seed.
        loss: Of a result: infinite where the run diverged, NaN where it failed, which says nothing of its rate. Either
            ends its direction of the search.
        start: The first rate, or the only one.
        seeds: The first one searches.
        search: Whether other rates than `start` are tried.
        pool: Where the runs take place, those of the other seeds at once; without, they run here, one by one.
    """
    first: dict[float, Result] = {}

    def at(lr: float, *chosen: int) -> list[Result]:
        if pool is None:
            return [run(lr, seed) for seed in chosen]
        return [future.result() for future in [pool.submit(run, lr, seed) for seed in chosen]]

    def tried(lr: float) -> float:
        (first[lr],) = at(lr, seeds[0])
        return loss(first[lr])

    rates = around(start, tried) if search else {start: _comparable(tried(start))}
    for _ in range(AGAIN if search else 0):
        if loss(first[start]) != math.inf:
            break
        start /= 4
        rates |= around(start, tried)
    best = min(rates, key=lambda lr: rates[lr])
    lost = search and math.isinf(rates[best])
    return Best(rates, best, [first[best], *at(best, *([] if lost else seeds[1:]))])


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
