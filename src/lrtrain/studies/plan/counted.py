"""Counts what a configuration takes, as `lrtrain plan` does, for commands that plan many configurations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrtrain.config.plan_parser import parse
from lrtrain.config.settings import command_line
from lrtrain.studies.plan.parameters_and_flops import costs
from lrtrain.studies.plan.plan_settings import read_run
from lrtrain.studies.plan.planned_model import PlannedModel, model_of


@dataclass(frozen=True)
class Cost:
    """What a configuration takes.

    Attributes:
        parameters: Parameters of the decoder.
        flops: Forward and backward FLOPs per token.
        tokens: Tokens per optimizer step.
        steps: Optimizer steps of the run.
        every: Optimizer steps between two validations.
    """

    parameters: int
    flops: int
    tokens: int
    steps: int
    every: int


def counted(configs: Sequence[Path], settings: Mapping[str, Any]) -> Cost:
    """Parameters, FLOPs, tokens and steps of the configuration that files and settings (by dotted key) make.

    Raises:
        UserError: a key or value that the configuration does not take.
    """
    config, model = planned(configs, settings)
    run = read_run(config)
    interval, steps = config.trainer.val_check_interval, run.steps or 1
    return Cost(
        parameters=sum(p.numel() for p in model.decoder.parameters()),
        flops=costs(model, run).token,
        tokens=run.step_tokens,
        steps=steps,
        every=max(1, interval // run.accumulate) if isinstance(interval, int) else steps,
    )


def planned(configs: Sequence[Path], settings: Mapping[str, Any]) -> tuple[Any, PlannedModel]:
    """The configuration, and its decoder and optimizers without weights. Raises UserError as `counted` does."""
    parser, config = parse(command_line(configs, settings))
    return config, model_of(parser, config)
