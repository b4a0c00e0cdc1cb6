"""What a step costs by part, from the steps that were measured, and what to change first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from lrtrain.runtime.table import table
from lrtrain.studies.profile.part_times import (
    BACKWARD,
    CHECKPOINT,
    CLIPPING,
    CONSTRAINTS,
    DATA,
    LOGGING,
    LOSS,
    TELEMETRY,
    TRAINER,
)
from lrtrain.studies.profile.peak_composition import Composition

BLOCKS = ("forward: attention", "forward: MLP", "forward: norms and residuals", "forward: blocks")
ORDER = (DATA, "forward: embedding", *BLOCKS, LOSS, BACKWARD)
AFTER = (CONSTRAINTS, CLIPPING, TELEMETRY, LOGGING, CHECKPOINT)
NOTEWORTHY = 0.05
"""Share of a step below which no change is advised."""


@dataclass(frozen=True)
class Rarely:
    """What a run does every so many steps alone.

    Attributes:
        every: Steps between two times, as configured; 0 for never.
        due: Indices of the measured steps in which it was done.
    """

    every: int
    due: Sequence[int]


@dataclass(frozen=True)
class Cost:
    """A part of an optimizer step: its seconds, and, of what is done every so many steps, those of one time."""

    part: str
    seconds: float
    once: float | None = None
    every: int | None = None


@dataclass(frozen=True)
class Setting:
    """What the advice looks at: how the run is configured, and what it could be."""

    accumulate: int
    num_workers: int | None
    precision: str
    fastest_precision: str
    compiled: bool
    on_gpu: bool
    recomputes: bool
    asynchronous: bool


def step_costs(steps: Sequence[Mapping[str, float]], rarely: Mapping[str, Rarely], accumulate: int) -> list[Cost]:
    """The median of the measured steps, each of one micro-batch, as a step of `accumulate` micro-batches.

    What is done every N steps counts with an Nth of one time; the rest of its part is what it takes in every step.
    """
    parts = {part for step in steps for part in step}
    optimizers = sorted(part for part in parts if part.startswith("optimizer"))
    known = (*ORDER, *optimizers, *AFTER)
    costs = []
    for part in [*(one for one in known if one in parts), *sorted(parts.difference(known, [TRAINER])), TRAINER]:
        seconds = [step.get(part, 0.0) for step in steps]
        once = every = None
        if part in rarely and rarely[part].due:
            due, every = rarely[part].due, rarely[part].every
            others = [value for index, value in enumerate(seconds) if index not in due]
            always = median(others) if others else 0.0
            once = median(seconds[index] for index in due) - always
            each = always + (max(once, 0.0) / every if every else 0.0)
        else:
            each = median(seconds)
        inside = part in (*ORDER, TRAINER) or part.startswith("callback")
        costs.append(Cost(part, each * accumulate if inside else each, once, every))
    return costs


def cost_table(costs: Sequence[Cost]) -> str:
    """The costs as text, with their shares."""
    total = sum(cost.seconds for cost in costs)
    rows = [["part of a step", "ms", "share", ""]]
    for cost in costs:
        note = ""
        if cost.once is not None and cost.every and cost.every > 1:
            note = f"every {cost.every} steps {1e3 * max(cost.once, 0.0):.1f} ms"
        rows.append([cost.part, f"{1e3 * cost.seconds:,.2f}", f"{cost.seconds / total:.1%}", note])
    return table([*rows, ["step", f"{1e3 * total:,.2f}", "100.0%", ""]])


def memory_table(memory: Composition) -> str:
    """What memory holds at its peak, as text."""
    kinds = {
        "weights": memory.weights,
        "optimizer state": memory.optimizer,
        "gradients": memory.gradients,
        "activations and temporary": memory.activations,
    }
    rows = [["memory at its peak", "MB", "share"]]
    rows += [[name, f"{size / 1e6:,.1f}", f"{size / memory.total:.1%}"] for name, size in kinds.items()]
    return table([*rows, ["all", f"{memory.total / 1e6:,.1f}", "100.0%"]]) + f"\nthe peak is in: {memory.part}"


def advice(costs: Sequence[Cost], setting: Setting) -> str:
    """One sentence on what to change first: the change that could save most of a token's time, by these costs."""
    total = sum(cost.seconds for cost in costs)
    spent = {cost.part: cost.seconds / total for cost in costs}
    passes = sum(share for part, share in spent.items() if part.startswith("forward")) + spent.get(BACKWARD, 0.0)
    changes = sorted(_changes(spent, passes, setting), reverse=True)
    if changes and changes[0][0] >= NOTEWORTHY:
        return changes[0][1]
    return (
        f"forward and backward pass take {passes:.0%} of a step, and no setting here stands in their way: what is left "
        "is fewer FLOPs (a lower rank), larger micro-batches, or a faster device"
    )


def _changes(spent: Mapping[str, float], passes: float, setting: Setting) -> list[tuple[float, str]]:
    """What could be changed: the share of a step that it could save, and the sentence."""
    found = []
    if setting.num_workers is not None:
        told = f"{spent.get(DATA, 0.0):.0%} of a step waits for data, with data.num_workers {setting.num_workers}"
        found.append((spent.get(DATA, 0.0), f"{told}: raise it"))
    if setting.precision == "32-true" != setting.fastest_precision:
        told = f"{passes:.0%} of a step are products in float32, and this device has bfloat16"
        found.append((passes / 2, f"{told}: set trainer.precision {setting.fastest_precision}, or null"))
    fused = spent.get("forward: norms and residuals", 0.0) * 3
    if setting.on_gpu and not setting.compiled:
        told = f"about {fused:.0%} of a step, forward and backward, is element-wise work that compiling fuses"
        found.append((fused, f"{told}: set model.compile true"))
    if setting.recomputes:
        blocks = sum(spent.get(part, 0.0) for part in BLOCKS)
        told = f"the backward pass computes all blocks again, about {blocks:.0%} of a step"
        how = "set model.activation_checkpointing false, if lrtrain plan --memory says that it fits"
        found.append((blocks, f"{told}: {how}"))
    once_a_step = sum(
        share for part, share in spent.items() if part.startswith("optimizer") or part in (CONSTRAINTS, CLIPPING)
    )
    told = f"{once_a_step:.0%} of a step come once a step, however many tokens it has"
    how = f"trainer.accumulate_grad_batches {2 * setting.accumulate} halves that, and makes another training of it"
    found.append((once_a_step / 2, f"{told}: {how}"))
    told = f"{spent.get(TELEMETRY, 0.0):.0%} of a step is telemetry"
    found.append((spent.get(TELEMETRY, 0.0), f"{told}: raise every_n_steps of SpectralTelemetry"))
    told = f"{spent.get(LOGGING, 0.0):.0%} of a step is logging"
    found.append((spent.get(LOGGING, 0.0), f"{told}: raise trainer.log_every_n_steps"))
    how = "raise checkpoints.every_n_steps" if setting.asynchronous else "set checkpoints.asynchronous true"
    told = f"{spent.get(CHECKPOINT, 0.0):.0%} of the time goes into checkpoints"
    found.append((spent.get(CHECKPOINT, 0.0), f"{told}: {how}"))
    own = {part: share for part, share in spent.items() if part.startswith("callback")}
    found += [(share, f"{part} takes {share:.0%} of a step: let it act less often") for part, share in own.items()]
    return found


def as_json(costs: Sequence[Cost], memory: Composition | None, said: str, **more: Any) -> dict[str, Any]:
    """The same as plain values, in seconds and bytes."""
    return {
        "parts": [vars(cost) for cost in costs],
        "memory": None if memory is None else {**vars(memory), "total": memory.total},
        "advice": said,
        **more,
    }
