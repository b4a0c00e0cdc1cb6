"""The SCT paper's memory table: computed, and measured on real matrices after a real AdamW step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from lrtrain.nn import DenseLinear, SpectralLinear
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.table import table
from lrtrain.studies.compare.panels import Panel
from lrtrain.studies.experiments.definition import Definition
from lrtrain.studies.experiments.experiment_figure import over_x
from lrtrain.studies.experiments.result import Effort, Result
from lrtrain.studies.experiments.verdict import NOT_REPRODUCED, REPRODUCED, Finding, overall
from lrtrain.studies.plan.live_bytes import LiveBytes
from lrtrain.studies.plan.sct_memory import PUBLISHED, RANK, SctMemory, sct_memory, sct_table

MB = 1e6
FIGURES, DIGITS = ("MB dense", "MB spectral", "ratio"), (3, 3, 2)
"""Of the paper's table, and how many decimals they have there."""

SLACK = 64
"""Bytes that AdamW keeps beside weights, gradients and moments: a step counter a parameter."""


@dataclass(frozen=True)
class Row:
    """One matrix: bytes by the formula, bytes kept after a step, and most bytes in it; 0 where nothing was measured."""

    name: str
    m: int
    n: int
    formula: SctMemory
    dense: tuple[int, int]
    spectral: tuple[int, int]


def plan(definition: Definition) -> str:
    """The paper's table by the formula."""
    return sct_table()


def run(definition: Definition, effort: Effort) -> Result:
    """Computes and measures the table, and holds it against the published one."""
    rows = measure_rows(definition.scale.options.measure)
    checked = findings(rows, definition.published)
    _, verdict = overall(checked, definition.scale.differs)
    return Result(memory_table(rows), verdict, {"matrices": [as_data(row) for row in rows]}, checked, [panel(rows)])


def measure_rows(most: float) -> list[Row]:
    """The paper's matrices. A dense one is measured where weights, gradients and moments take at most `most` MB."""
    rows = []
    for name, (m, n) in PUBLISHED.items():
        formula = sct_memory(m, n, RANK)
        dense = measured(partial(DenseLinear, m, n), m) if formula.dense <= most * MB else (0, 0)
        spectral = measured(partial(SpectralLinear, m, n, rank=RANK), m)
        rows.append(Row(name, m, n, formula, dense, spectral))
    return rows


def measured(make: Callable[[], nn.Module], in_features: int) -> tuple[int, int]:
    """Bytes of a layer's weights, gradients and AdamW state after a step on one token, and the most during it."""
    make()  # what the initialization keeps for a shape is there before anything is counted
    with LiveBytes() as live:
        layer = make()
        optimizer = torch.optim.AdamW(layer.parameters())
        live.restart()
        x = torch.ones(1, in_features)
        layer(x).sum().backward()
        optimizer.step()
        del x
        return live.now, live.peak


def findings(rows: list[Row], published: Mapping[str, Any]) -> list[Finding]:
    """The formula against the paper's digits, and the measured bytes against the formula.

    Raises:
        UserError: `published` is no table of the matrices' MB dense, MB spectral and ratio.
    """
    wrong = []
    for row in rows:
        paper = published.get(row.name)
        if (
            not isinstance(paper, list)
            or not all(isinstance(number, int | float) for number in paper)
            or len(paper) != 3
        ):
            raise UserError(f"published.{row.name}: expected MB dense, MB spectral and ratio, got {paper!r}")
        ours = (row.formula.dense / MB, row.formula.spectral / MB, row.formula.ratio)
        wrong += [
            f"{row.name} {what} {value:.{places}f}, the paper's {number}"
            for what, places, value, number in zip(FIGURES, DIGITS, ours, paper, strict=True)
            if f"{value:.{places}f}" != f"{number:.{places}f}"
        ]
    found = [
        Finding(NOT_REPRODUCED, "; ".join(wrong))
        if wrong
        else Finding(REPRODUCED, f"all {3 * len(rows)} figures of the table equal the paper's to every digit")
    ]
    pairs = [
        (kept[0], size)
        for row in rows
        for kept, size in ((row.dense, row.formula.dense), (row.spectral, row.formula.spectral))
        if kept[0]
    ]
    off = max(abs(kept - size) for kept, size in pairs)
    exact = off <= SLACK
    text = f"{len(pairs)} matrices measured after an AdamW step differ from the formula by at most {off} bytes"
    return [*found, Finding(REPRODUCED if exact else NOT_REPRODUCED, text)]


def memory_table(rows: list[Row]) -> str:
    """MB of 10⁶ bytes: by the formula, kept after a step, and at the peak of that step."""
    lines = [["matrix", "m × n", "dense", "measured", "peak", f"SCT, rank {RANK}", "measured", "peak", "ratio"]]
    for row in rows:
        sizes = (row.formula.dense, *row.dense, row.formula.spectral, *row.spectral)
        cells = [f"{size / MB:.3f}" if size else "" for size in sizes]
        lines.append([row.name, f"{row.m} × {row.n}", *cells, f"{row.formula.ratio:.2f}"])
    return table(lines)


def panel(rows: list[Row]) -> Panel:
    """Memory over the entries of the matrix, on a logarithmic axis."""

    def line(of: Callable[[Row], int]) -> list[tuple[float, list[float]]]:
        return [(row.m * row.n / MB, [of(row) / MB]) for row in rows if of(row)]

    lines = {
        "dense": line(lambda row: row.formula.dense),
        f"SCT, rank {RANK}": line(lambda row: row.formula.spectral),
        "dense, peak of a step": line(lambda row: row.dense[1]),
        "SCT, peak of a step": line(lambda row: row.spectral[1]),
    }
    ylabel = "MB of weights, gradients, moments"
    drawn = over_x(
        "Memory of one trained matrix",
        "entries of the matrix (millions)",
        ylabel,
        {k: v for k, v in lines.items() if v},
    )
    return Panel(drawn.title, drawn.xlabel, drawn.ylabel, drawn.bands, logarithmic=True)


def as_data(row: Row) -> dict[str, Any]:
    """A row for JSON, in bytes; measured ones null where they were not."""
    names = ("dense_measured", "dense_peak", "spectral_measured", "spectral_peak")
    numbers = dict(zip(names, (size or None for size in (*row.dense, *row.spectral)), strict=True))
    formula = {"dense": row.formula.dense, "spectral": row.formula.spectral, "ratio": row.formula.ratio}
    return {"matrix": row.name, "m": row.m, "n": row.n, "rank": RANK, **formula, **numbers}
