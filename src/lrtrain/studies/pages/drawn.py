"""What pages and pictures draw: curves with their range, shares of a whole, values of layers over steps."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Band:
    """Mean, minimum and maximum of a group's runs at points x, or in intervals around them; `last` is the last mean."""

    label: str
    runs: int
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    last: float


@dataclass(frozen=True)
class Panel:
    """Bands over one horizontal axis.

    Attributes:
        logarithmic: The vertical axis.
        bound: A value of y that is marked.
        whole: No steep beginning is cut off.
        x_logarithmic: The horizontal axis.
    """

    title: str
    xlabel: str
    ylabel: str
    bands: list[Band]
    logarithmic: bool = False
    bound: float | None = None
    whole: bool = False
    x_logarithmic: bool = False


@dataclass(frozen=True)
class Shares:
    """Shares of a whole, in percent: `parts[name]` has one number for each label."""

    title: str
    labels: list[str]
    parts: dict[str, list[float]]


@dataclass(frozen=True)
class Heatmap:
    """A value of each layer at steps: `values` has a row a layer and a column a step, NaN where there is none."""

    title: str
    steps: np.ndarray
    layers: list[str]
    values: np.ndarray
    logarithmic: bool = False


@dataclass(frozen=True)
class Choice:
    """Panels of which a page shows one: `panels[vertical][horizontal]`, each by the name that is chosen."""

    title: str
    panels: dict[str, dict[str, Panel]]
