"""Refuses optimizers and losses that cannot work, before anything is trained."""

import inspect

import torch
from torch import nn

from lrtrain.nn import LossCallable
from lrtrain.optim import OptimizerCallable
from lrtrain.runtime.errors import UserError


def check_optimizer(key: str, make: OptimizerCallable) -> None:
    """Raises UserError, under the configuration's key, for an optimizer whose values or kind cannot work."""
    try:
        optimizer = make([("check", nn.Parameter(torch.zeros(2, 2)))])
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{key}: {error}") from error
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UserError(
            f"{key}: {type(optimizer).__name__} computes the loss several times a step; name another optimizer"
        )


def check_loss(loss: LossCallable | None) -> None:
    """Raises UserError for a loss that takes other arguments, or that has parameters to train."""
    if loss is None:
        return
    try:
        inspect.signature(loss).bind(*range(4))
    except (TypeError, ValueError) as error:
        raise UserError(f"model.loss: called as (hidden, head, targets, tokens): {error}") from error
    if isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
        raise UserError(
            f"model.loss: the parameters of {type(loss).__name__} are neither trained nor saved: "
            "call requires_grad_(False) on it"
        )
