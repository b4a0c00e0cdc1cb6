"""Tables and verdict of the kind `rates`: the best learning rates, and how far they move."""

import math
from collections.abc import Sequence
from typing import Any

from lrtrain.runtime.table import table
from lrtrain.studies.compare.comparison import figure
from lrtrain.studies.experiments.definition import LOSS, Definition
from lrtrain.studies.experiments.rate_curves import Mapped
from lrtrain.studies.experiments.rate_optimum import NEAR, Movement, lost_at, optimum
from lrtrain.studies.experiments.records import value


def rates_table(definition: Definition, mapped: Sequence[Mapped]) -> str:
    """A line a size: the best learning rate, the loss there, and what the figure shows beside."""
    looked = looked_at(definition)
    others = [f"{statistic} {metric.removeprefix('spectral/').lstrip('*.')}" for metric, statistic in looked]
    rows = [["variant", "lr", "rates", LOSS, f"lr within {NEAR:g} nats", "at the center's lr", *others]]
    for one in mapped:
        center = optimum(one.losses(one.sized.center))
        for runs in one.sized.all:
            losses, own = one.losses(runs), optimum(one.losses(runs))
            lost = lost_at(losses, center.lr) if runs is not one.sized.center else math.nan
            row = [runs.variant.label, _rate(own.lr, own.end), str(len(losses)), _number(own.loss)]
            row += [f"{own.good[0]:g} to {own.good[1]:g}", "" if math.isnan(lost) else f"+{lost:.3f}"]
            lowest = min(losses, key=lambda lr: losses[lr])
            for what in looked:
                known = [found for o in one.curves[runs.name][lowest] if (found := value(o, *what)) is not None]
                row.append(figure(sum(known) / len(known)) if known else "–")
            rows.append(row)
    return table(rows)


def movement_table(definition: Definition, mapped: Sequence[Mapped]) -> str:
    """A line a variant: how far its best learning rate moves over each axis, and what it costs not to follow it."""
    names = [axis.name for axis in definition.scale.options.axes]
    rows = [["best lr moves by a factor", *names, "nats lost at the center's lr"]]
    for one in mapped:
        moves = one.movements()
        lost = [move.lost for move in moves.values()]
        cells = [_factor(moves[name]) if name in moves else "–" for name in names]
        rows.append([one.sized.variant.label, *cells, "–" if any(map(math.isnan, lost)) else f"{max(lost):.3f}"])
    return table(rows)


def rates_verdict(definition: Definition, mapped: Sequence[Mapped]) -> str:
    differs = [definition.scale.differs] if definition.scale.differs else []
    if not definition.scale.options.axes:
        best = [(optimum(one.losses(one.sized.center)), one.sized.variant.label) for one in mapped]
        told = [f"{label} {_number(own.loss)} at {_rate(own.lr, own.end)}" for own, label in sorted(best, key=_loss)]
        return "; ".join(["lowest loss: " + ", ".join(told), *differs])
    moved = {one.sized.variant.label: one.movements() for one in mapped}
    far = {label: max(_far(move) for move in moves.values()) for label, moves in moved.items()}
    told = [
        f"{label} {', '.join(f'{_factor(move)} over {name}' for name, move in moved[label].items())}"
        for label in sorted(far, key=lambda label: far[label])
    ]
    return "; ".join(["the best learning rate moves, least first: " + "; ".join(told), *differs])


def _loss(item: tuple[Any, str]) -> float:
    loss: float = item[0].loss
    return loss


def _far(move: Movement) -> float:
    return math.inf if math.isnan(move.factor) else move.factor


def _factor(move: Movement) -> str:
    return "–" if math.isnan(move.factor) else f"{'≥ ' if move.least else ''}{move.factor:.2f}"


def _rate(lr: float, end: str) -> str:
    return "–" if math.isnan(lr) else {"lowest": "≤ ", "highest": "≥ "}.get(end, "") + f"{lr:.3g}"


def _number(loss: float) -> str:
    return "diverged" if math.isinf(loss) else f"{loss:.3f}"


def looked_at(definition: Definition) -> list[tuple[str, str]]:
    looked = dict.fromkeys((drawing.metric, drawing.statistic) for drawing in definition.figure)
    return [what for what in looked if what != (LOSS, "last")]


def unfinished_rates(mapped: Sequence[Mapped]) -> list[str]:
    """A line for each curve that lacks runs."""
    lines = []
    for one in mapped:
        for runs in one.sized.all:
            for status in ("diverged", "failed"):
                curve = one.curves[runs.name].items()
                if lost := [f"{lr:g}" for lr, of_seeds in sorted(curve) if any(o.status == status for o in of_seeds)]:
                    lines.append(f"{runs.variant.label}: {status} at lr {', '.join(lost)}")
    return lines
