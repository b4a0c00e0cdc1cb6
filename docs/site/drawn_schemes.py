"""Figures that show how things lie and move: boxes, arrows, a sphere."""

import math

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

BLUE, ORANGE, GREEN, RED = "#4c78d0", "#e07b39", "#3fa45b", "#d14b4b"


def _bare(width: float, height: float) -> tuple[Figure, Axes]:
    figure, axes = pyplot.subplots(figsize=(width, height))
    axes.set_aspect("equal")
    axes.axis("off")
    return figure, axes


def _box(axes: Axes, x: float, y: float, w: float, h: float, label: str, color: str, below: str = "") -> None:
    """A rectangle with a label in it and its shape below; y is the top."""
    axes.add_patch(Rectangle((x, y - h), w, h, facecolor=color, alpha=0.35, edgecolor=color, linewidth=1.5))
    axes.text(x + w / 2, y - h / 2, label, ha="center", va="center", fontsize=12)
    if below:
        axes.text(x + w / 2, y - h - 0.12, below, ha="center", va="top", fontsize=8)


def _note(axes: Axes, at: np.ndarray, right: int, up: int, text: str, **style: object) -> None:
    """A text some points beside a place."""
    axes.annotate(text, at, (right, up), textcoords="offset points", **style)  # type: ignore[arg-type]


def factorization() -> Figure:
    """The three ways to write a projection."""
    figure, axes = _bare(4.6, 3.9)
    _box(axes, 0, 4, 2, 2.4, "W", BLUE, "out × in")
    axes.text(2.3, 2.8, "=", ha="center", va="center", fontsize=14)
    _box(axes, 2.6, 4, 0.5, 2.4, "A", ORANGE, "out × r")
    _box(axes, 3.4, 4, 2, 0.5, "Bᵀ", ORANGE, "r × in")
    axes.text(6.0, 2.8, "low-rank", va="center", fontsize=10)
    axes.text(2.3, -0.2, "=", ha="center", va="center", fontsize=14)
    _box(axes, 0, 1, 2, 2.4, "W", BLUE, "out × in")
    _box(axes, 2.6, 1, 0.5, 2.4, "V", GREEN, "out × k")
    _box(axes, 3.4, 1, 0.5, 0.5, "s", RED, "k")
    axes.plot([3.4, 3.9], [1, 0.5], color=RED, linewidth=1)
    _box(axes, 4.2, 1, 2, 0.5, "Uᵀ", GREEN, "k × in")
    axes.text(4.2, -0.5, "spectral:\nUᵀU = VᵀV = I", va="center", fontsize=10)
    axes.set(xlim=(-0.1, 7.3), ylim=(-2.0, 4.2))
    return figure


def stiefel() -> Figure:
    """A column of U as a point of a sphere: gradient, its tangent part, the step, and the way back."""
    figure, axes = _bare(4.6, 2.7)
    angle = np.linspace(0, math.pi, 200)
    axes.plot(np.cos(angle), np.sin(angle), color="#888888", linewidth=1.5)
    axes.plot(np.cos(angle), 0.12 * np.sin(angle) * -1, color="#888888", linewidth=0.8, linestyle=":")
    at = math.radians(115)
    x = np.array([math.cos(at), math.sin(at)])
    tangent = np.array([math.sin(at), -math.cos(at)])
    line = np.array([x - 0.75 * tangent, x + 1.15 * tangent])
    axes.plot(*line.T, color="#888888", linewidth=1, linestyle="--")
    _note(axes, line[0], -2, -5, "tangent space", ha="center", va="top", fontsize=9)
    inside = x + 0.8 * tangent
    step = inside + 0.3 * x
    back = step / np.linalg.norm(step)
    arrow = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "linewidth": 1.6}
    axes.annotate("", step, x, arrowprops=arrow | {"color": BLUE})
    axes.annotate("", inside, x, arrowprops=arrow | {"color": GREEN})
    axes.annotate("", back, step, arrowprops=arrow | {"color": RED})
    axes.plot([inside[0], step[0]], [inside[1], step[1]], color="#888888", linewidth=0.8, linestyle=":")
    axes.plot(*x, "o", color=BLUE)
    axes.plot(*back, "o", color=RED)
    _note(axes, x, -5, 5, "X", ha="right", fontsize=12)
    _note(axes, step, 3, 5, "X − η D", fontsize=11, color=BLUE)
    _note(axes, inside, 5, -2, "its tangent part", fontsize=9, color=GREEN, va="center")
    _note(axes, back, 4, -26, "Q of X − η D = Q R", fontsize=10, color=RED, ha="center", va="top")
    axes.set(xlim=(-1.35, 1.9), ylim=(-0.15, 1.7))
    return figure


def guidance() -> Figure:
    """How the dense weight of a self-guided projection fades."""
    figure, axes = pyplot.subplots(figsize=(4.6, 2.8))
    time = np.linspace(0, 1, 401)
    alpha = np.where(time < 0.5, 0.5 * (1 + np.cos(math.pi * time / 0.5)), 0)
    axes.plot(time, alpha, label="α: the dense weight's share")
    axes.plot(time, np.where(time < 0.5, 1 - alpha, np.nan), label="1 − α: chance that its product is skipped")
    axes.plot([0.5, 0.5], [0, 1], color="#888888", linewidth=1, linestyle="--")
    axes.text(0.52, 0.55, "W and its optimizer\nstate are deleted", fontsize=9)
    axes.set(xlabel="share of the run's steps", xlim=(0, 1), ylim=(0, 1.3))
    axes.legend(loc="upper right")
    return figure


def sharded_gram() -> Figure:
    """Rows of a factor on three processes; only r × r matrices travel."""
    figure, axes = _bare(5.2, 2.8)
    for index, color in enumerate((BLUE, ORANGE, GREEN)):
        top = 3.6 - 1.25 * index
        _box(axes, 0, top, 0.7, 1.05, f"X{'₀₁₂'[index]}", color)
        axes.text(-0.15, top - 0.52, f"process {index}", ha="right", va="center", fontsize=9)
        axes.annotate("", (2.1, top - 0.52), (0.85, top - 0.52), arrowprops={"arrowstyle": "-|>", "color": "#888888"})
        _box(axes, 2.2, top - 0.17, 0.7, 0.7, "", color)
        axes.text(2.55, top - 0.52, f"X{'₀₁₂'[index]}ᵀX{'₀₁₂'[index]}", ha="center", va="center", fontsize=8)
        axes.annotate("", (4.1, 1.83), (3.0, top - 0.52), arrowprops={"arrowstyle": "-|>", "color": "#888888"})
    _box(axes, 4.2, 2.2, 0.7, 0.7, "S", RED, "r × r")
    axes.text(4.55, 2.75, "sum over\nprocesses", ha="center", fontsize=9)
    axes.text(5.1, 1.83, "→ polynomial,\nnorm, Cholesky:\nsmall, the same\neverywhere", va="center", fontsize=9)
    axes.text(0.35, -0.35, "rows × r", ha="center", va="top", fontsize=8)
    axes.set(xlim=(-1.5, 7.4), ylim=(-0.8, 3.7))
    return figure


def stream() -> Figure:
    """From documents to batches."""
    figure, axes = pyplot.subplots(figsize=(4.6, 4.4))
    axes.axis("off")
    steps = (
        ("documents", "text, code, JSON lines, parquet, a format of your own", BLUE),
        ("held out, or trained on", "by a hash of the text: the same text is never on both sides", ORANGE),
        ("tokens", "byte-level BPE, an end-of-text token after each document", GREEN),
        ("shards and manifest.json", "what is in them and what they were made from", RED),
        ("an endless stream of blocks", "every epoch shuffled by data.seed; saved with a checkpoint", BLUE),
        ("batches of each process", "the same order on any number of them", ORANGE),
    )
    for index, (what, how, color) in enumerate(steps):
        y = len(steps) - index
        axes.add_patch(Rectangle((0, y - 0.35), 6, 0.7, facecolor=color, alpha=0.25, edgecolor=color, linewidth=1.2))
        axes.text(3, y + 0.12, what, ha="center", va="center", fontsize=10)
        axes.text(3, y - 0.16, how, ha="center", va="center", fontsize=7.5)
        if index:
            axes.annotate("", (3, y + 0.35), (3, y + 0.65), arrowprops={"arrowstyle": "-|>", "color": "#888888"})
    axes.set(xlim=(-0.1, 6.1), ylim=(0.5, len(steps) + 0.5))
    return figure


def parabolas() -> Figure:
    """How an isoFLOP fit works: the lowest point at each budget, and the line through these."""
    figure, axes = pyplot.subplots(figsize=(4.6, 3.0))
    size = np.logspace(-1.2, 1.6, 200)
    for index, color in enumerate((BLUE, ORANGE, GREEN)):
        best, lowest = 0.35 * 3**index, 4.2 - 0.5 * index
        loss = lowest + 0.55 * np.log10(size / best) ** 2
        near = abs(np.log10(size / best)) < 0.75
        axes.semilogx(size[near], loss[near], color=color, label=f"budget C{'₁₂₃'[index]}")
        points = best * np.logspace(-0.6, 0.6, 5)
        axes.plot(points, lowest + 0.55 * np.log10(points / best) ** 2, "o", color=color, markersize=4)
        axes.plot(best, lowest, "*", color=RED, markersize=12)
    axes.plot(0.35 * 3.0 ** np.arange(3), 4.2 - 0.5 * np.arange(3), color=RED, linewidth=1, linestyle="--")
    axes.set(xlabel="parameters N", ylabel="loss", xticks=[], yticks=[])
    axes.minorticks_off()
    axes.legend(loc="upper right")
    return figure


FIGURES = {
    function.__name__: function for function in (factorization, stiefel, guidance, sharded_gram, stream, parabolas)
}
