"""What is asked of a plan: the settings of the run, how processes share the model, and the budget."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace

from lrtrain.config.own_data import data_sizes
from lrtrain.constraints import Constraint
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.hints import nearest
from lrtrain.tracking.recorded import recorded

PRECISIONS: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "32-true": (torch.float32, None),
    "32": (torch.float32, None),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "bf16": (torch.float32, torch.bfloat16),
    "16-mixed": (torch.float32, torch.float16),
    "16": (torch.float32, torch.float16),
    "64-true": (torch.float64, None),
    "64": (torch.float64, None),
}
"""Precision -> dtype of the weights and autocast's, None without autocast."""

NODE = 8
"""Processes of a node where nothing says otherwise: the shards of one copy under hsdp."""

METRIC = "throughput/tokens_per_second"


@dataclass(frozen=True)
class Run:
    """The settings of a run that a plan looks at.

    Attributes:
        tokens: Tokens in one sequence.
        batch: Sequences of a micro-batch on one device.
        accumulate: Micro-batches of an optimizer step.
        steps: Optimizer steps; None where the configuration sets none.
        devices: Processes; one a node where the configuration leaves it to the machine.
        as_many_as_there_are: The configuration leaves the processes of a node to the machine.
        shards: Processes of one copy of the model, if the configuration names a sharded strategy.
        precision: A key of `PRECISIONS`.
        on_cpu: The configuration names a CPU; else memory is that of a GPU.
        recompute: Activation checkpointing.
        constraints: Those that the configuration asks for; None where it leaves them to the projections.
    """

    tokens: int
    batch: int
    accumulate: int
    steps: int | None
    devices: int
    as_many_as_there_are: bool
    shards: int | None
    precision: str
    on_cpu: bool
    recompute: bool
    constraints: Sequence[Constraint] | None

    @property
    def step_tokens(self) -> int:
        """Tokens of an optimizer step."""
        return self.tokens * self.batch * self.accumulate * self.devices


def read_run(config: Any) -> Run:
    """The run of a resolved configuration.

    Raises:
        UserError: a precision that is not known, or a number below 1.
    """
    trainer = config.trainer
    block_size, batch_size = data_sizes(config.data)
    # null: what `fit` takes on every device that has bfloat16.
    precision = "bf16-mixed" if trainer.precision is None else str(trainer.precision)
    if precision not in PRECISIONS:
        raise UserError(f"trainer.precision is {precision}: a plan knows {', '.join(PRECISIONS)}")
    sizes = {
        "data.block_size": block_size,
        "data.batch_size": batch_size,
        "trainer.accumulate_grad_batches": trainer.accumulate_grad_batches,
        "trainer.num_nodes": trainer.num_nodes,
    }
    for key, value in sizes.items():
        if value < 1:
            raise UserError(f"{key} is {value}: give at least 1")
    strategy = trainer.strategy if isinstance(trainer.strategy, Namespace) else Namespace()
    return Run(
        tokens=block_size,
        batch=batch_size,
        accumulate=trainer.accumulate_grad_batches,
        steps=trainer.max_steps if trainer.max_steps > 0 else None,
        devices=_per_node(trainer.devices) * trainer.num_nodes,
        as_many_as_there_are=_is_open(trainer.devices),
        shards=strategy.get("init_args", {}).get("shards"),
        precision=precision,
        on_cpu="cpu" in str(trainer.accelerator).lower(),
        recompute=config.model.activation_checkpointing,
        constraints=_constraints(trainer.callbacks),
    )


def _is_open(devices: list[int] | str | int) -> bool:
    return str(devices).strip() in ("auto", "-1")


def _per_node(devices: list[int] | str | int) -> int:
    """Processes of a node, in every form that the Trainer takes; 1 where they are as many as the machine has."""
    text = str(devices).strip()
    if _is_open(devices):
        return 1
    if isinstance(devices, list) or "," in text:
        listed = devices if isinstance(devices, list) else [part for part in text.split(",") if part.strip()]
        if listed and len(set(map(str, listed))) == len(listed) and all(str(part).strip().isdigit() for part in listed):
            return len(listed)
    elif text.isdigit() and int(text) > 0:
        return int(text)
    raise UserError(f"trainer.devices is {devices}: give a number of processes, a list of devices as [0, 1], or auto")


def _constraints(callbacks: Any) -> Sequence[Constraint] | None:
    """The constraints that `SpectralConstraints` is given, made as `fit` makes them."""
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        if callback is not None and callback.class_path.endswith("SpectralConstraints"):
            parser = ArgumentParser(exit_on_error=False)
            parser.add_argument("--constraints", type=list[Constraint] | None)
            return parser.instantiate(callback.init_args).constraints
    return None


@dataclass(frozen=True)
class Layout:
    """`replicas` copies of a model, each cut by rows into `shards`."""

    strategy: str
    replicas: int
    shards: int

    @property
    def devices(self) -> int:
        return self.replicas * self.shards


def layouts(devices: Sequence[int], shards: int | None) -> list[Layout]:
    """Returns every strategy on every number of devices; one device, with nothing to share, gives one layout.

    Under hsdp `shards` processes share one copy; None takes the largest divisor up to 8 that leaves two copies.

    Raises:
        UserError: a number below 1, or one that `shards` does not divide.
    """
    if shards is not None and shards < 1:
        raise UserError(f"--shards {shards}: processes that share one copy of the model, at least 1")
    return list(dict.fromkeys(layout for number in devices for layout in _layouts(number, shards)))


def _layouts(devices: int, shards: int | None) -> list[Layout]:
    if devices < 1:
        raise UserError(f"--devices {devices}: give numbers of processes, at least 1")
    if devices == 1:
        return [Layout("one device", 1, 1)]
    if shards is None:
        shards = max(d for d in range(1, min(NODE, devices // 2) + 1) if devices % d == 0)
    if devices % shards:
        raise UserError(
            f"--devices {devices}: hsdp cannot make copies of {shards} shards of it; give --shards a divisor of it"
        )
    return [Layout("ddp", devices, 1), Layout("fsdp", 1, devices), Layout("hsdp", devices // shards, shards)]


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
    """Returns the budget from `tokens`, else `flops`, else the configuration's steps; None without any."""
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
    """Returns the median tokens per second (all processes together) of the newest run of a name that recorded any.

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
