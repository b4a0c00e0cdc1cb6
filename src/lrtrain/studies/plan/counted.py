"""What a configuration takes, as `lrtrain plan` counts it, for commands that plan many."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrtrain.config.settings import command_line

if TYPE_CHECKING:
    from lrtrain.studies.plan.planned_model import PlannedModel


@dataclass(frozen=True)
class Cost:
    """What a configuration takes.

    Attributes:
        parameters: Of the decoder.
        flops: Of training on one token, forward and backward pass.
        tokens: Of an optimizer step.
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
    from lrtrain.studies.plan.costs import costs
    from lrtrain.studies.plan.request import read_run

    config, model = _planned(configs, settings)
    run = read_run(config)
    interval, steps = config.trainer.val_check_interval, run.steps or 1
    return Cost(
        parameters=sum(p.numel() for p in model.decoder.parameters()),
        flops=costs(model, run.tokens, run.recompute, run.constraints).token,
        tokens=run.step_tokens,
        steps=steps,
        every=max(1, interval // run.accumulate) if isinstance(interval, int) else steps,
    )


def planned(configs: Sequence[Path], settings: Mapping[str, Any]) -> "PlannedModel":
    """The decoder and the optimizers, without weights. Raises UserError as `counted` does."""
    return _planned(configs, settings)[1]


def _planned(configs: Sequence[Path], settings: Mapping[str, Any]) -> tuple[Any, "PlannedModel"]:
    from lrtrain.config.plan_parser import parse
    from lrtrain.studies.plan.planned_model import model_of

    parser, config = parse(command_line(configs, settings))
    return config, model_of(parser, config)
