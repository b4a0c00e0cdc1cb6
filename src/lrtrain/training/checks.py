"""Refuses strategies, precisions, optimizers, losses and batches that cannot work, before anything is trained."""

import inspect
import os
import shutil

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import nn

from lrtrain.nn import LossCallable
from lrtrain.optim import OptimizerCallable
from lrtrain.runtime.errors import UserError
from lrtrain.training.fsdp import FSDP

INSTEAD = "shard with --config configs/parallel/fsdp.yaml (lrtrain.training.FSDP)"
_FLATTENED = "flattens weights into vectors: no matrix is left to orthogonalize, to renormalize or to retract"
_COLUMNS = "(tensor parallelism) may cut a matrix by columns, and a Gram matrix is a sum over rows"
REASONS = {
    "FSDPStrategy": f"FSDP1 {_FLATTENED}",
    "DeepSpeedStrategy": f"DeepSpeed {_FLATTENED}",
    "ModelParallelStrategy": f"ModelParallelStrategy {_COLUMNS}",
}
NAMES = {"fsdp": "FSDPStrategy", "deepspeed": "DeepSpeedStrategy"}
"""What Lightning's short names of strategies begin with: `fsdp_cpu_offload`, `deepspeed_stage_3`."""


def check_strategy(strategy: str | Strategy) -> None:
    """Refuses a strategy under which the factors of a weight are no longer whole matrices or matrices cut by rows.

    Args:
        strategy: What `trainer.strategy` holds, or the Trainer's strategy once it is made.

    Raises:
        UserError: says why, and what to use.
    """
    if isinstance(strategy, str):
        if "." in strategy:
            raise UserError(
                f"trainer.strategy is the text {strategy!r}: name a class in YAML, as configs/parallel/fsdp.yaml does"
            )
        kind = next((kind for prefix, kind in NAMES.items() if strategy.lower().startswith(prefix)), None)
        known = kind is None
    else:
        kind = next((base.__name__ for base in type(strategy).__mro__ if base.__name__ in REASONS), None)
        known = isinstance(strategy, DDPStrategy | FSDP | SingleDeviceStrategy)
    if known:
        return
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    reason = REASONS[kind] if kind else "it is not known to keep the factors of a weight whole or cut by rows"
    raise UserError(f"trainer.strategy is {name}: {reason}; {INSTEAD}")


def why_not_compiled(module: nn.Module) -> str:
    """What speaks against compiling its blocks on a GPU: a projection's own reason, or no C compiler; empty if nothing.

    Triton builds the launcher of each kernel with that compiler.
    """
    for part in module.modules():
        if reason := getattr(part, "not_compiled", ""):
            return str(reason)
    found = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    return "" if found else "no C compiler is found (apt-get install gcc, or set CC)"


def check_precision(precision: int | str | None) -> None:
    """Raises UserError for a precision of the Trainer under which the weights themselves have few digits."""
    if str(precision).endswith("16-true") or str(precision).startswith("transformer-engine"):
        raise UserError(
            f"trainer.precision is {precision}: it keeps the weights in 16 bits, which round most of a step away and "
            "leave no columns orthonormal; use bf16-mixed, whose products are as fast and whose weights are float32"
        )


def check_optimizer(key: str, make: OptimizerCallable) -> None:
    """Raises UserError, under the configuration's key, for an optimizer whose values or kind cannot work."""
    try:
        optimizer = make([("check", nn.Parameter(torch.zeros(2, 2)))])
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{key}: {error}") from error
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UserError(
            f"{key}: {type(optimizer).__name__} computes the loss several times a step; name another optimizer"
        )


def check_batch(batch: object) -> None:
    """Raises UserError for what is no int64 tensor (B, T + 1), which an own data module may give."""
    if isinstance(batch, torch.Tensor) and batch.dtype == torch.int64 and batch.ndim == 2 and batch.shape[1] > 1:
        return
    found = f"{batch.dtype} of shape {tuple(batch.shape)}" if isinstance(batch, torch.Tensor) else type(batch).__name__
    raise UserError(f"data: a batch is an int64 tensor (sequences, tokens + 1), and the data module gave {found}")


def check_loss(loss: LossCallable | None) -> None:
    """Raises UserError for a loss that takes other arguments, or that has parameters to train."""
    if loss is None:
        return
    try:
        called = loss.forward if isinstance(loss, nn.Module) else loss
        inspect.signature(called).bind(*range(4))
    except (TypeError, ValueError) as error:
        raise UserError(f"model.loss: called as (hidden, head, targets, tokens): {error}") from error
    if isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
        raise UserError(
            f"model.loss: the parameters of {type(loss).__name__} are neither trained nor saved: "
            "call requires_grad_(False) on it"
        )
