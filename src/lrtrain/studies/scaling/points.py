"""The points of a scaling law as a table: budget, size, tokens, loss."""

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import write_atomically, writing
from lrtrain.studies.scaling.grid import SIZES

Array = NDArray[np.floating[Any]]
BUDGETS = 3
"""Budgets that a fit needs at least: a line through two points fits anything."""

POINTS = "points.csv"
"""The file's name beside its plan."""

COLUMNS = ("name", "budget", "parameters", "non_embedding", "tokens", "flops", "seed", "lr", "loss")
"""What `lrtrain scaling run` writes. A fit reads budget, the parameters it is asked for, tokens and loss."""


@dataclass(frozen=True)
class Points:
    """One run an entry, arrays of one length: `budget` in FLOPs, `parameters` N, `tokens` D, `loss` in nats per token.

    Repetitions with other seeds are entries of their own.
    """

    budget: Array
    parameters: Array
    tokens: Array
    loss: Array

    def budgets(self) -> list[float]:
        return sorted(set(self.budget.tolist()))

    def at(self, budget: float) -> "Points":
        chosen = self.budget == budget
        return Points(self.budget[chosen], self.parameters[chosen], self.tokens[chosen], self.loss[chosen])


def write_points(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes rows of `COLUMNS` as CSV, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with writing(f"cannot write {path}", "name a folder that can be written"):
        write_atomically(path, text.getvalue().encode())


def read_points(path: Path, parameters: str = "parameters") -> Points:
    """Reads a CSV with a header; `parameters` is the column that counts as N.

    Raises:
        UserError: the file or a column is missing, a value is no positive number, or there are less than three budgets
            or a budget with less than three sizes.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            reader.fieldnames = columns = [name.strip() for name in reader.fieldnames or []]
            rows = list(reader)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: run lrtrain scaling run first, or correct the path") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name a CSV file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no CSV file ({error}): name a table of points") from error
    needed = ("budget", parameters, "tokens", "loss")
    if missing := [name for name in needed if name not in columns]:
        raise UserError(f"{path} lacks the column {missing[0]}: a fit reads {', '.join(needed)}")
    values = [[_number(path, line, name, row[name]) for name in needed] for line, row in enumerate(rows, 2)]
    points = Points(*np.array(values, dtype=float).reshape(-1, len(needed)).T)
    if len(points.budgets()) < BUDGETS:
        raise UserError(f"{path} has {len(points.budgets())} budgets: a power law needs {BUDGETS} or more")
    for budget in points.budgets():
        if (sizes := len(set(points.at(budget).parameters))) < SIZES:
            raise UserError(
                f"{path}: budget {budget:.4g} has {sizes} sizes and a parabola needs {SIZES}: train more sizes, or "
                "drop that budget"
            )
    return points


def _number(path: Path, line: int, name: str, text: str | None) -> float:
    try:
        value = float(text or "nothing")
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(
            f"{path} line {line}: {name} is {text!r}, not a positive number: train that run again or drop it"
        )
    return value
