"""Profiling a configuration: its own run, in a folder that goes away, for as many steps as it takes."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from lrtrain.config.plan_parser import parse
from lrtrain.config.settings import flags
from lrtrain.config.train_parser import TrainingRun, fastest_precision
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import write_atomically, writing
from lrtrain.studies.profile.part_times import CHECKPOINT, LOGGING, TELEMETRY
from lrtrain.studies.profile.profiled_steps import SNAPSHOT, STEPS, TRACE, WARM_UP, ProfiledSteps
from lrtrain.studies.profile.step_report import (
    Cost,
    Rarely,
    Setting,
    advice,
    as_json,
    cost_table,
    memory_table,
    step_costs,
)
from lrtrain.tracking.provenance import provenance

OFTEN = 5
"""Steps between two of what a run does now and then, so that ten steps hold some; it counts as often as configured."""

SAVED_AT = WARM_UP + 4
"""The step of whose checkpoint the time is taken."""

FIGURES = "profile.json"
OWN = {
    "trainer.logger": "false",
    "trainer.limit_val_batches": "0",
    "trainer.num_sanity_val_steps": "0",
    "trainer.accumulate_grad_batches": "1",
    "trainer.enable_progress_bar": "false",
    "trainer.devices": "1",
    "trainer.num_nodes": "1",
    "checkpoints.every_n_steps": str(SAVED_AT),
    "checkpoints.path": "null",
}
"""What a profile sets for itself."""

REFUSED = ("ckpt_path", "trainer.profiler", "trainer.fast_dev_run")


def profile(argv: list[str], out: Path | None) -> str:
    """Trains some steps of a configuration, writes trace and figures, and returns the tables and the advice.

    Raises:
        UserError: what `lrtrain fit` would refuse, a setting that a profile has for itself, several processes, data
            that end before the steps are done, or a folder that cannot be written.
    """
    for flag, _ in flags(argv):
        if flag.removeprefix("--") in REFUSED:
            raise UserError(f"{flag}: a profile begins a run and measures it by itself; leave it out")
    asked = Asked(argv)
    folder = out or Path(asked.runs, asked.name, "profile")
    with writing(f"--out {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".run-", dir=folder) as runs:  # of the disk that a run would write to
        every = min(asked.log_every, OFTEN)
        own = {**OWN, "runs": runs, "trainer.log_every_n_steps": str(every)}
        run = TrainingRun("fit", [*argv, *(f"--{key}={value}" for key, value in own.items())])
        measured = _train(run, folder)
    costs = step_costs(measured.times.steps, _rarely(asked, every, measured), asked.accumulate)
    said = advice(costs, _setting(run, asked))
    figures = as_json(
        costs,
        measured.memory,
        said,
        steps=[dict(step) for step in measured.times.steps],
        plain_step_seconds=measured.plain,
        accumulate_grad_batches=asked.accumulate,
        allocator=measured.allocated,
        **provenance(),
    )
    with writing(f"--out {folder}"):
        write_atomically(folder / FIGURES, (json.dumps(figures, indent=1, default=str) + "\n").encode())
    return "\n\n".join(_text(measured, costs, asked, said, folder))


class Asked:
    """What the configuration says of that which a profile sets for itself."""

    def __init__(self, argv: list[str]) -> None:
        _, config = parse(argv)
        trainer, log_every = config.trainer, config.trainer.log_every_n_steps
        self.name, self.runs = str(config.name), str(config.runs)
        self.accumulate = int(trainer.accumulate_grad_batches or 1)
        self.log_every = 50 if log_every is None else int(log_every)
        self.save_every = int(config.checkpoints.every_n_steps)
        self.several = str(trainer.devices) not in ("1", "auto", "None") or int(trainer.num_nodes or 1) > 1


def _train(run: TrainingRun, folder: Path) -> ProfiledSteps:
    trainer, steps = run.trainer, WARM_UP + STEPS + 1
    if trainer.world_size > 1:
        raise UserError(f"profile measures one process, and {trainer.world_size} are started: start one")
    measured = ProfiledSteps(folder, trainer.strategy.root_device, OFTEN)
    trainer.profiler = measured.profiler  # type: ignore[attr-defined]
    trainer.callbacks.append(measured)  # type: ignore[attr-defined]
    if 0 <= trainer.max_steps < steps:
        trainer.fit_loop.epoch_loop.max_steps = steps
    trainer.fit(run.model, datamodule=run.datamodule)
    if trainer.global_step < steps:
        raise UserError(f"data: they end after {trainer.global_step} steps, and a profile takes {steps}")
    return measured


def _rarely(asked: Asked, logged: int, measured: ProfiledSteps) -> dict[str, Rarely]:
    """What was done in some of the measured steps alone, and how often the configuration has it done."""
    first = WARM_UP + 1

    def due(every: int) -> list[int]:
        return [index for index in range(STEPS) if every and (first + index) % every == 0]

    return {
        LOGGING: Rarely(asked.log_every, due(logged)),
        TELEMETRY: Rarely(measured.telemetry_every, due(min(measured.telemetry_every, OFTEN))),
        CHECKPOINT: Rarely(asked.save_every, [SAVED_AT + 1 - first]),  # it is saved where the next step begins
    }


def _setting(run: TrainingRun, asked: Asked) -> Setting:
    model: Any = run.config.model
    return Setting(
        accumulate=asked.accumulate,
        num_workers=getattr(run.datamodule, "num_workers", None),
        precision=str(run.trainer.precision),
        fastest_precision=fastest_precision(),
        compiled=run.model.compiled,
        on_gpu=run.trainer.strategy.root_device.type == "cuda",
        recomputes=bool(model.activation_checkpointing),
        asynchronous=bool(run.config.checkpoints.asynchronous),
    )


def _text(measured: ProfiledSteps, costs: Sequence[Cost], asked: Asked, said: str, folder: Path) -> Iterator[str]:
    lines = [f"{STEPS} steps under the PyTorch profiler, whose own work is in these figures"]
    steps = [sum(step.values()) for step in measured.times.steps]
    lines[0] += f": {1e3 * median(steps):,.1f} ms each, {1e3 * median(measured.plain):,.1f} ms without it"
    if asked.accumulate > 1:
        lines.append(
            f"one micro-batch a step was measured; a step is {asked.accumulate} of them "
            "(trainer.accumulate_grad_batches), and so it stands here"
        )
    if asked.several:
        lines.append("one process alone: what several say to one another is not in it")
    if measured.device.type == "cuda":
        lines.append("the GPU was waited for at every border of a part: the sum is more than a step takes by itself")
    lines.append("no MLflow, no validation")
    yield cost_table(costs) + "\n" + "\n".join(lines)
    if measured.memory is not None:
        told = memory_table(measured.memory)
        if measured.allocated is not None:
            tensors, taken = (size / 1e6 for size in measured.allocated)
            told += f"\nthe GPU's allocator: {tensors:,.1f} MB of tensors at most, {taken:,.1f} MB taken"
        yield told
    yield f"first: {said}"
    written = [f"{folder / TRACE}   open it at https://ui.perfetto.dev", str(folder / FIGURES)]
    if measured.allocated is not None:
        written.append(f"{folder / SNAPSHOT}   open it at https://pytorch.org/memory_viz")
    yield "\n".join(written)
