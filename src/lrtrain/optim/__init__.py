"""Optimizers and schedules: ordinary torch classes, usable alone. torch alone is needed."""

from lrtrain.optim.combined import CombinedOptimizer, remove_parameters, shard_like
from lrtrain.optim.lora_muon import LoRAMuon
from lrtrain.optim.optimizer_in_backward import step_in_backward
from lrtrain.optim.protocol import StatedOptimizer, UnstatedError, holders, moments, require_moments, stated
from lrtrain.optim.schedules import WarmupCosine, WarmupStableDecay
from lrtrain.optim.slots import OptimizerCallable, Optimizers, Slot, build_optimizer, coverage
from lrtrain.optim.spectron import Spectron
from lrtrain.optim.stiefel import Stiefel

__all__ = [
    "CombinedOptimizer",
    "LoRAMuon",
    "OptimizerCallable",
    "Optimizers",
    "Slot",
    "Spectron",
    "StatedOptimizer",
    "Stiefel",
    "UnstatedError",
    "WarmupCosine",
    "WarmupStableDecay",
    "build_optimizer",
    "coverage",
    "holders",
    "moments",
    "remove_parameters",
    "require_moments",
    "shard_like",
    "stated",
    "step_in_backward",
]
