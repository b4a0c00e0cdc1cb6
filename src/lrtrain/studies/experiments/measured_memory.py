"""The SCT paper's memory table: computed, and measured on real matrices after a real AdamW step."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from lrtrain.nn import DenseLinear, SpectralLinear
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.table import table
from lrtrain.studies.experiments.definition import Definition
from lrtrain.studies.experiments.experiment_figure import over_x
from lrtrain.studies.experiments.experiment_report import Effort, Result
from lrtrain.studies.experiments.verdict import NOT_REPRODUCED, REPRODUCED, Finding, overall
from lrtrain.studies.pages.drawn import Panel
from lrtrain.studies.plan.live_bytes import LiveBytes
from lrtrain.studies.plan.sct_memory import PUBLISHED, RANK, sct_memory, sct_table

MB = 1e6
FIGURES, DIGITS = ("MB dense", "MB spectral", "ratio"), (3, 3, 2)
"""Of the paper's table, and how many decimals they have there."""

SLACK = 64
"""Bytes that AdamW keeps beside weights, gradients and moments: a step counter a parameter."""


@dataclass(frozen=True)
class Row:
    """One matrix: bytes by the formula, kept after a step (`measured`), and most in it; None where not measured."""

    matrix: str
    m: int
    n: int
    rank: int
    dense: int
    spectral: int
    ratio: float
    dense_measured: int | None
    dense_peak: int | None
    spectral_measured: int | None
    spectral_peak: int | None


def plan(definition: Definition) -> str:
    """The paper's table by the formula."""
    return sct_table()


def run(definition: Definition, effort: Effort) -> Result:
    """Computes and measures the table, and holds it against the published one."""
    rows = measure_rows(definition.scale.options.measure)
    checked = findings(rows, definition.published)
    _, verdict = overall(checked, definition.scale.differs)
    found = {"matrices": [asdict(row) for row in rows]}
    return Result(memory_table(rows), verdict, found, checked, [panel(rows)])


def measure_rows(most: float) -> list[Row]:
    """The paper's matrices. A dense one is measured where weights, gradients and moments take at most `most` MB."""
    rows = []
    for name, (m, n) in PUBLISHED.items():
        formula = sct_memory(m, n, RANK)
        dense: tuple[int, int] | tuple[None, None] = (None, None)
        if formula.dense <= most * MB:
            dense = measured(partial(DenseLinear, m, n), m)
        spectral = measured(partial(SpectralLinear, m, n, rank=RANK), m)
        kept, peak = dense
        rows.append(Row(name, m, n, RANK, *formula, formula.ratio, kept, peak, *spectral))
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
    wrong, off = [], []
    for row in rows:
        paper, ours = published.get(row.matrix), (row.dense / MB, row.spectral / MB, row.ratio)
        if not isinstance(paper, list) or [isinstance(number, int | float) for number in paper] != [True] * 3:
            raise UserError(f"published.{row.matrix}: expected MB dense, MB spectral and ratio, got {paper!r}")
        wrong += [
            f"{row.matrix} {what} {value:.{places}f}, the paper's {number}"
            for what, places, value, number in zip(FIGURES, DIGITS, ours, paper, strict=True)
            if f"{value:.{places}f}" != f"{number:.{places}f}"
        ]
        pairs = ((row.dense_measured, row.dense), (row.spectral_measured, row.spectral))
        off += [abs(kept - size) for kept, size in pairs if kept]
    right = f"all {3 * len(rows)} figures of the table equal the paper's to every digit"
    text = f"{len(off)} matrices measured after an AdamW step differ from the formula by at most {max(off)} bytes"
    return [
        Finding(NOT_REPRODUCED if wrong else REPRODUCED, "; ".join(wrong) or right),
        Finding(REPRODUCED if max(off) <= SLACK else NOT_REPRODUCED, text),
    ]


def memory_table(rows: list[Row]) -> str:
    """MB of 10⁶ bytes: by the formula, kept after a step, and at the peak of that step."""
    lines = [["matrix", "m × n", "dense", "measured", "peak", f"SCT, rank {RANK}", "measured", "peak", "ratio"]]
    for row in rows:
        dense, spectral = (row.dense_measured, row.dense_peak), (row.spectral_measured, row.spectral_peak)
        cells = [f"{size / MB:.3f}" if size else "" for size in (row.dense, *dense, row.spectral, *spectral)]
        lines.append([row.matrix, f"{row.m} × {row.n}", *cells, f"{row.ratio:.2f}"])
    return table(lines)


def panel(rows: list[Row]) -> Panel:
    """Memory over the entries of the matrix, on a logarithmic axis."""
    sizes = {
        "dense": "dense",
        f"SCT, rank {RANK}": "spectral",
        "dense, peak of a step": "dense_peak",
        "SCT, peak of a step": "spectral_peak",
    }
    lines = {
        label: [(row.m * row.n / MB, [getattr(row, size) / MB]) for row in rows if getattr(row, size)]
        for label, size in sizes.items()
    }
    drawn = {label: points for label, points in lines.items() if points}
    axes = ("entries of the matrix (millions)", "MB of weights, gradients, moments")
    return replace(over_x("Memory of one trained matrix", *axes, drawn), logarithmic=True)
