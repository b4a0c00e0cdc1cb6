"""What is asked of a plan, read from a resolved configuration."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser

from lrtrain.config.error_lines import one_line
from lrtrain.config.own_data import data_sizes
from lrtrain.constraints import Constraint
from lrtrain.runtime.errors import UserError

PRECISIONS: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "32-true": (torch.float32, None),
    "32": (torch.float32, None),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "bf16": (torch.float32, torch.bfloat16),
    "16-mixed": (torch.float32, torch.float16),
    "16": (torch.float32, torch.float16),
    "bf16-true": (torch.bfloat16, None),
    "16-true": (torch.float16, None),
    "64-true": (torch.float64, None),
    "64": (torch.float64, None),
}
"""Precision -> dtype of the weights and autocast's, None without autocast."""

DEFAULT_PRECISION = "bf16-mixed"
"""Of `precision: null`: what `fit` takes on every device that has bfloat16."""


@dataclass(frozen=True)
class Run:
    """The settings of a run that a plan looks at.

    Attributes:
        tokens: Of one sequence.
        batch: Sequences of a micro-batch on one device.
        accumulate: Micro-batches of an optimizer step.
        steps: Optimizer steps; None where the configuration sets none.
        devices: Processes; 1 where the configuration leaves it to the machine.
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
    precision = DEFAULT_PRECISION if trainer.precision is None else str(trainer.precision)
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
    per_node = trainer.devices if isinstance(trainer.devices, int) and trainer.devices > 0 else 1
    strategy = trainer.strategy if isinstance(trainer.strategy, dict) else {}
    return Run(
        tokens=block_size,
        batch=batch_size,
        accumulate=trainer.accumulate_grad_batches,
        steps=trainer.max_steps if trainer.max_steps > 0 else None,
        devices=per_node * trainer.num_nodes,
        shards=strategy.get("shards") or strategy.get("init_args", {}).get("shards"),
        precision=precision,
        on_cpu=trainer.accelerator == "cpu",
        recompute=config.model.activation_checkpointing,
        constraints=_constraints(trainer.callbacks),
    )


def _constraints(callbacks: Any) -> Sequence[Constraint] | None:
    """The constraints that `SpectralConstraints` is given, made as `fit` makes them."""
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        if isinstance(callback, dict) and str(callback.get("class_path", "")).endswith("SpectralConstraints"):
            parser = ArgumentParser(exit_on_error=False)
            parser.add_argument("--constraints", type=list[Constraint] | None)
            try:
                given = parser.parse_object(callback.get("init_args") or {})
            except ArgumentError as error:
                line = one_line(str(error), [], [])
                raise UserError(f"trainer.callbacks: SpectralConstraints: {line}") from error
            return parser.instantiate(given).constraints
    return None
