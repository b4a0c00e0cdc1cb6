"""Optimizers and schedules: ordinary torch classes, usable alone. torch alone is needed."""

from lrtrain.optim.combined import CombinedOptimizer
from lrtrain.optim.schedules import WarmupCosine, WarmupStableDecay
from lrtrain.optim.slots import OptimizerCallable, Optimizers, Slot, build_optimizer, coverage_table
from lrtrain.optim.spectron import Spectron

__all__ = [
    "CombinedOptimizer",
    "OptimizerCallable",
    "Optimizers",
    "Slot",
    "Spectron",
    "WarmupCosine",
    "WarmupStableDecay",
    "build_optimizer",
    "coverage_table",
]
