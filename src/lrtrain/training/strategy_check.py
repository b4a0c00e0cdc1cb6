"""Which of Lightning's strategies can train low-rank weights, and why the others cannot."""

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

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
