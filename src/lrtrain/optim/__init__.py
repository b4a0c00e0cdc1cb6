"""Optimizers and schedules: ordinary torch classes, usable alone. torch alone is needed."""

from lrtrain.optim.combined import CombinedOptimizer, shard_like
from lrtrain.optim.forget import forget
from lrtrain.optim.optimizer_in_backward import step_in_backward
from lrtrain.optim.schedules import WarmupCosine, WarmupStableDecay
from lrtrain.optim.slots import OptimizerCallable, Optimizers, Slot, build_optimizer, coverage_table
from lrtrain.optim.spectron import Spectron
from lrtrain.optim.stiefel import Stiefel

__all__ = [
    "CombinedOptimizer",
    "OptimizerCallable",
    "Optimizers",
    "Slot",
    "Spectron",
    "Stiefel",
    "WarmupCosine",
    "WarmupStableDecay",
    "build_optimizer",
    "coverage_table",
    "forget",
    "shard_like",
    "step_in_backward",
]
