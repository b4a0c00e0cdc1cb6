"""The telemetry inside a Lightning training step."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lrtrain.constraints import find_factors
from lrtrain.linalg import orthonormality_error
from lrtrain.runtime.errors import UserError
from lrtrain.training.checks import check_batch
from lrtrain.training.telemetry import SameNameError, Telemetry

PROBE_SEQUENCES, PROBE_TOKENS = 2, 128
"""At most so many sequences of a batch, and tokens of each, are the probe."""

LARGEST = ("sigma_A", "sigma_B", "update_over_lr")
"""Figures whose largest value over the layers is logged too."""


class SpectralTelemetry(L.Callback):
    """Logs what each optimizer step does to some projections: norms, ranks, the size of the update.

    Every `every_n_steps` the figures of `training.Telemetry` are logged as `spectral/<layer>/<figure>`, with
    the largest ‖A‖₂, ‖B‖₂ and ‖ΔW‖₂/η of these layers as `spectral/sigma_A`, `spectral/sigma_B` and
    `spectral/update_over_lr`, and the largest max |XᵀX − I| over all orthonormal parameters of the model as
    `spectral/orthonormality_error`.

    Outputs' changes are measured on a probe: the first tokens of the first process's first training batch, kept in the
    checkpoint. Before a step that is measured it goes through the model, without gradients and in evaluation mode. The
    weights are copied before the update and compared once the step is over, constraints included; a skipped step is
    not measured. Nothing that training depends on is touched.

    `CausalLM` attaches this callback by itself; name it under `trainer.callbacks` to change it.

    Args:
        layers: Patterns of projections' names, such as `*.attention.output`; null for the attention output projections
            of the first, the fifth, the middle and the last block.
        every_n_steps: Optimizer steps between two measurements; 0 for none.
        figures: Functions of one's own, (projection) -> {name: figure}, logged as `spectral/<layer>/<name>`. With
            sharded weights every process calls them, and must get the same figures.

    Raises:
        UserError: `every_n_steps` is negative, a pattern matches no projection, or two figures have one name.
    """

    def __init__(
        self,
        layers: list[str] | None = None,
        every_n_steps: int = 25,
        figures: list[Callable[[nn.Module], dict[str, float]]] | None = None,
    ) -> None:
        if every_n_steps < 0:
            raise UserError(
                f"trainer.callbacks: SpectralTelemetry has every_n_steps: {every_n_steps}: give at least 1, or 0 for "
                "no measurements"
            )
        self.layers = layers
        self.every_n_steps = every_n_steps
        self.figures = figures or []
        self.measured: dict[str, float] = {}
        self._telemetry: Telemetry | None = None
        self._tokens: Tensor | None = None
        self._probed = self._stepping = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._probed = self._stepping = False
        if not self.every_n_steps:
            return
        try:
            self._telemetry = Telemetry(pl_module, self.layers, self.figures)
        except ValueError as error:
            raise UserError(f"trainer.callbacks: SpectralTelemetry.layers: {error}") from error
        if names := self._telemetry.without_weight:
            kind = type(pl_module.get_submodule(names[0])).__name__
            rank_zero_warn(
                f"SpectralTelemetry: {', '.join(names)}: {kind} states no weight (factor_pairs, spectral_triples or "
                f"materialize), so {'only its own figures are' if self.figures else 'nothing of it is'} logged"
            )

    def _due(self, trainer: L.Trainer) -> bool:
        return self.every_n_steps > 0 and (trainer.global_step + 1) % self.every_n_steps == 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Tensor, batch_idx: int
    ) -> None:
        if self._telemetry is None:
            return
        if self._tokens is None:
            check_batch(batch)
            own = batch[:PROBE_SEQUENCES, : min(PROBE_TOKENS, batch.shape[1] - 1)].cpu()
            self._tokens = trainer.strategy.broadcast(own)
        # Here and not before the update: where weights are gathered, the training forward that follows uses the same.
        if self._due(trainer) and not self._probed:
            tokens, decoder = self._tokens.to(pl_module.device), pl_module.decoder
            with trainer.precision_plugin.forward_context(), torch.compiler.set_stance("force_eager"):
                self._telemetry.probe(lambda: decoder(tokens))  # type: ignore[operator]
            self._probed = True

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        if self._telemetry is None or not self._due(trainer):
            return
        self._probed = False
        if getattr(optimizer, "skip_step", False):
            self._telemetry.forget()
            return
        self._telemetry.before_step(optimizer)
        self._stepping = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._telemetry is None or not self._stepping:
            return
        self._stepping = False
        try:
            figures = self._telemetry.after_step()
        except SameNameError as error:
            raise UserError(f"trainer.callbacks: SpectralTelemetry.figures: {error}") from error
        self.measured = {}
        for key in LARGEST:
            values = [found[key] for found in figures.values() if key in found]
            if values:
                self.measured[f"spectral/{key}"] = max(values)
        orthonormal = find_factors(pl_module)[1].values()
        if orthonormal:
            errors = [float(orthonormality_error(x)) for x in orthonormal]
            self.measured["spectral/orthonormality_error"] = max(errors)
        for layer, found in figures.items():
            self.measured |= {f"spectral/{layer}/{key}": value for key, value in found.items()}
        # Straight to the loggers: Lightning would pass on only what falls on its own log interval.
        for logger in trainer.loggers:
            logger.log_metrics(self.measured, step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._tokens is None else {"probe": self._tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._tokens = state_dict.get("probe")
