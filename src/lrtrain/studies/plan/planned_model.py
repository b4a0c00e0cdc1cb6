"""A configuration's decoder and optimizers on the meta device."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lrtrain.nn import Decoder, LossCallable
from lrtrain.nn.decoder import check_flops
from lrtrain.nn.projection import hidden_parameters
from lrtrain.optim import CombinedOptimizer, Optimizers, Slot, build_optimizer
from lrtrain.runtime.errors import UserError


@dataclass(frozen=True)
class PlannedModel:
    """A configuration's decoder and optimizers: no memory is allocated, but for what a loss of one's own holds."""

    decoder: Decoder
    optimizers: Optimizers
    optimizer: CombinedOptimizer
    slots: list[Slot]
    loss: LossCallable | None = None

    @property
    def makers(self) -> dict[str, Callable[..., Any]]:
        """Pattern -> what makes its optimizer."""
        return {**self.optimizers.overrides, "hidden": self.optimizers.hidden, "other": self.optimizers.other}


def model_of(parser: Any, config: Any) -> PlannedModel:
    """The decoder and the optimizers of a parsed configuration, on the meta device."""
    decoder = config.model.decoder
    alike = decoder.class_path == "lrtrain.nn.Decoder" and not decoder.init_args.overrides
    depth = decoder.init_args.depth if alike else None
    made = parser.instantiate(config).model
    return planned_model(made.decoder, depth, made.optimizers, made.loss)


def planned_model(
    make: Callable[..., Decoder], depth: int | None, optimizers: Optimizers, loss: LossCallable | None = None
) -> PlannedModel:
    """Builds decoder and optimizers, as training does.

    Args:
        make: Makes the decoder; takes `depth` where that is not None.
        depth: Blocks, if the decoder is known to make them alike: one is then made and copied, which takes a fraction
            of the time.
        optimizers: Which optimizer has which parameter.
        loss: What training minimizes; None is the next-token loss.

    Raises:
        UserError: a value out of range, or an override that matches nothing.
    """
    try:
        with torch.device("meta"):
            decoder = make() if depth is None or depth < 1 else make(depth=1)
        check_flops(decoder)
    except ValueError as error:
        raise UserError(f"model.decoder: {error}") from error
    decoder.blocks.extend(copy.deepcopy(decoder.blocks[0]) for _ in range((depth or 1) - 1))
    named = {f"decoder.{name}": p for name, p in decoder.named_parameters() if p.requires_grad}
    hidden = {f"decoder.{name}" for name in hidden_parameters(decoder)}
    try:
        optimizer, slots = build_optimizer(named, hidden, optimizers)
    except (ValueError, RuntimeError) as error:
        at = "model." if str(error).startswith("optimizers.") else "model.optimizers: "
        raise UserError(f"{at}{error}") from error
    return PlannedModel(decoder, optimizers, optimizer, slots, loss)
