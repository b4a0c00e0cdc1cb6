"""Tokens, steps, FLOPs and time of a run, and the speed of a recorded one."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.hints import nearest
from lrtrain.tracking.recorded import recorded

METRIC = "throughput/tokens_per_second"


@dataclass(frozen=True)
class Budget:
    """What a run takes.

    Attributes:
        tokens: Trained on.
        steps: Optimizer steps, rounded up.
        flops: Of forward and backward pass.
        source: Where the budget is from.
    """

    tokens: float
    steps: int
    flops: float
    source: str


def budget(
    tokens: float | None, flops: float | None, steps: int | None, step_tokens: int, token_flops: int
) -> Budget | None:
    """The budget by tokens, by FLOPs, or by the configuration's steps, the first that is given; None without any."""
    if tokens is not None:
        source = "--tokens"
    elif flops is not None:
        tokens, source = flops / token_flops, "--flops"
    elif steps is not None:
        tokens, source = float(steps * step_tokens), "trainer.max_steps"
    else:
        return None
    return Budget(tokens, -int(-tokens // step_tokens), tokens * token_flops, source)


def recorded_throughput(runs: str, name: str) -> float:
    """Tokens a second of the newest run of a name that recorded any, all its processes together: the median.

    Raises:
        UserError: no such run, or none with a recorded throughput.
    """
    found = [run for folder in sorted(Path(runs, name).glob("[0-9]" * 4), reverse=True) if (run := recorded(folder))]
    if not found:
        known = [path.name for path in Path(runs).iterdir() if path.is_dir()] if Path(runs).is_dir() else []
        hint = nearest(name, known) if known else "train it with lrtrain fit, or give --throughput"
        raise UserError(f"--like {name}: no run of that name has metrics in {runs}; {hint}")
    for run in found:
        if METRIC in run.metrics:
            return statistics.median(run.metrics[METRIC].value.tolist())
    raise UserError(f"--like {name}: its runs recorded no {METRIC}; name another run, or give --throughput")
