"""What a run's weights are at every moment when anyone can see them."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor
from torch.optim import Optimizer

import reference
from lrtrain.linalg import orthonormality_error
from lrtrain.nn import LowRankLinear
from lrtrain.training.causal_lm import CausalLM


def error_of(tensors: Mapping[str, Tensor]) -> float:
    bases = [t for name, t in tensors.items() if name.rpartition(".")[2] in ("U", "V")]
    return max((float(orthonormality_error(t)) for t in bases), default=0.0)


def products(model: CausalLM) -> dict[str, Tensor]:
    found = {name: m for name, m in model.named_modules() if isinstance(m, LowRankLinear)}
    return {name: m.materialize().detach().clone() for name, m in found.items()}


class Observer(L.Callback):
    """Looks at the weights at every moment when anyone can see them."""

    def __init__(self) -> None:
        self.errors: dict[str, list[float]] = {}
        self.ratios: list[float] = []
        self.steps = 0

    def look(self, moment: str, model: L.LightningModule) -> None:
        self.errors.setdefault(moment, []).append(error_of(dict(model.named_parameters())))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        self.look("before step", pl_module)
        self.rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        self.before = products(pl_module)
        self.stepped = True

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.stepped = False
        self.weights = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.look("batch end", pl_module)
        same = [torch.equal(p, self.weights[name]) for name, p in pl_module.named_parameters()]
        assert not any(same) if self.stepped else all(same)
        if self.stepped:
            self.steps += 1
            for name, product in products(pl_module).items():
                eta = self.rates[id(pl_module.get_submodule(name).A)]
                assert eta > 0
                self.ratios.append(reference.norm(product - self.before[name]) / eta)

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.look("validation", pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.look("save", pl_module)
        self.errors.setdefault("checkpoint", []).append(error_of(checkpoint["state_dict"]))


class ObservingLogger(Logger):
    """Looks at the weights whenever a point is logged, and keeps the points."""

    name, version = "observing", 0

    def __init__(self, model: CausalLM) -> None:
        super().__init__()
        self.model, self.errors, self.points = model, [], []  # type: ignore[var-annotated]

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.errors.append(error_of(dict(self.model.named_parameters())))
        self.points.append((step, metrics))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing of a run's parameters is looked at."""
