"""The LightningModule: loss, validation metrics, optimizers, and the constraints that the projections need."""

import json
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lrtrain.nn import Decoder, LossCallable, losses_by_position
from lrtrain.nn.decoder import Block, check_flops
from lrtrain.nn.projection import before_load, deleted_parameters, hidden_parameters
from lrtrain.optim import Optimizers, Slot, build_optimizer, coverage
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.table import table
from lrtrain.training.callbacks.spectral_constraints import SpectralConstraints
from lrtrain.training.callbacks.spectral_telemetry import SpectralTelemetry
from lrtrain.training.checks import (
    check_batch,
    check_loss,
    check_optimizer,
    check_precision,
    check_strategy,
    why_not_compiled,
)
from lrtrain.training.fsdp import FSDP
from lrtrain.training.resumed_rates import jumps, saved_rates
from lrtrain.training.token_loss import TokenLoss, by_position, summaries
from lrtrain.training.training_callbacks import training_callbacks
from lrtrain.training.warm_start import WarmStart

POSITIONS = "held_out/by_position.json"
"""The text of the record that has the loss of the last validation by position in the context."""

DecoderCallable = Callable[[], Decoder]
ScheduleCallable = Callable[[Optimizer, int], LRScheduler]


class CausalLM(L.LightningModule):
    """Next-token prediction with a decoder whose projections, optimizers and schedule come from the configuration.

    A batch is an int64 tensor (B, T + 1): tokens 0 … T − 1 are the input, 1 … T the targets.

    Args:
        decoder: Makes the decoder; called inside `configure_model`.
        optimizers: Which optimizer has which parameter.
        schedule: Makes the learning-rate schedule from the optimizer and the run's number of optimizer steps.
        loss: What training minimizes, called as (hidden_BTD, head_VD, targets_BT, tokens_BT); null is the next-token
            loss, which validation measures in any case.
        activation_checkpointing: Keep each block's input alone and compute the rest again in the backward pass: less
            memory, a third more computation.
        compile: Compile each block (`torch.compile`); the first steps take longer. Null: when training on CUDA, where a
            C compiler is found and no projection speaks against it.
    """

    def __init__(
        self,
        decoder: DecoderCallable,
        optimizers: Optimizers,
        schedule: ScheduleCallable,
        loss: LossCallable | None = None,
        activation_checkpointing: bool = False,
        compile: bool | None = None,
    ) -> None:
        super().__init__()
        self._make_decoder = decoder
        self._optimizers = optimizers
        self._schedule = schedule
        self._loss = (loss,)  # in a tuple: the module of a loss is no part of the model
        self._activation_checkpointing = activation_checkpointing
        self._compile = compile
        self._compiled = False
        self.decoder: Decoder | None = None
        self.warm_start: WarmStart | None = None  # where the weights come from, if not from the seed
        self._slots: list[Slot] = []
        self._losses: list[Tensor] = []  # of the micro-batches since the last step
        self._rates: dict[str, float] = {}  # of each parameter in the next step of the run resumed
        self.validation = TokenLoss()
        self.validation_texts: dict[str, str] = {}  # what the last one found beside its metrics, for the record

    @property
    def compiled(self) -> bool:
        """Whether blocks are compiled, once `configure_model` made them."""
        return self._compiled

    def _compiles(self, decoder: Decoder) -> bool:
        """Whether blocks are to be compiled; says why not where one would expect it."""
        fitting = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if self._compile is not None or not fitting or self.trainer.strategy.root_device.type != "cuda":
            return bool(self._compile)
        if why := why_not_compiled(decoder):
            rank_zero_only(print)(f"model.compile: blocks are not compiled: {why}")
        return not why

    def check(self) -> int:
        """Builds decoder, optimizers and schedule without memory or data, to refuse wrong values at once.

        Returns:
            The decoder's vocabulary size.

        Raises:
            UserError: a value out of range.
        """
        decoder = self._decoder_on("meta")
        training_callbacks(decoder)
        check_loss(self._loss[0])
        makers = {"hidden": self._optimizers.hidden, "other": self._optimizers.other, **self._optimizers.overrides}
        for slot, make in makers.items():
            check_optimizer(f"model.optimizers.{slot}", make)
        optimizer, _ = self._build_optimizer(nn.ModuleDict({"decoder": decoder}))
        self._build_schedule(optimizer, 1)
        return decoder.head_VD.shape[0]

    def configure_model(self) -> None:
        """Makes the decoder, once; sharded under `training.FSDP`."""
        if self.decoder is not None:
            return
        # A device's own generator would draw other weights.
        self.decoder = self._decoder_on("cpu" if self.warm_start is None else self.warm_start.made_on)
        self._compiled = self._compiles(self.decoder)
        for block in self.decoder.blocks:
            if isinstance(block, Block):
                block.recompute = self._activation_checkpointing
            if self._compiled:
                # The method, not the module: the gathering of weights around it stays outside the graph.
                block.forward = torch.compile(block.forward)
        if self._trainer is not None and isinstance(self.trainer.strategy, FSDP):
            self.trainer.strategy.shard(self.decoder)
        if self.warm_start is not None:
            self.warm_start.fill(self.decoder, self.trainer.strategy.root_device)
            rank_zero_only(print)(self.warm_start.report)

    def _decoder_on(self, device: str) -> Decoder:
        try:
            with torch.device(device):
                decoder = self._make_decoder()
            if device == "meta":
                check_flops(decoder)
        except ValueError as error:
            raise UserError(f"model.decoder: {error}") from error
        except RuntimeError as error:
            if "allocate memory" not in str(error):
                raise
            raise UserError("model.decoder: its weights do not fit in memory: make it smaller") from error
        for module in decoder.modules():
            if self._compile and (reason := getattr(module, "not_compiled", "")):
                raise UserError(f"model.compile is true: {reason}; set it to false")
        if self._activation_checkpointing and not all(isinstance(block, Block) for block in decoder.blocks):
            raise UserError(
                f"model.activation_checkpointing is true: the blocks of {type(decoder).__name__} are no "
                "lrtrain.nn.decoder.Block, which knows how; set it to false"
            )
        return decoder

    def setup(self, stage: str) -> None:
        """Refuses strategies that cut factors up, 16-bit weights and data of another vocabulary, before any work."""
        check_strategy(self.trainer.strategy)
        check_precision(self.trainer.precision)
        if isinstance(self._loss[0], nn.Module):
            self._loss[0].to(self.trainer.strategy.root_device)
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "check"):
            data.check(self.check())
        if self.warm_start is not None:
            self.warm_start.check_data(data)
        self.validation = TokenLoss(max(1, len(self._shares())))

    def configure_callbacks(self) -> list[L.Callback]:
        """What the projections need, and telemetry, except for what the configuration brings itself."""
        needed: list[type[L.Callback]] = [SpectralConstraints, SpectralTelemetry]
        needed += training_callbacks(self.decoder or self._decoder_on("meta"))
        own = self.trainer.callbacks  # type: ignore[attr-defined]
        return [kind() for kind in needed if not any(isinstance(one, kind) for one in own)]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Prepares the projections for the checkpoint's weights, and notes the rates with which its run would go on."""
        before_load(self, checkpoint["state_dict"])
        self._rates = saved_rates(checkpoint)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits (B, T, V)."""
        assert self.decoder is not None
        return self.decoder.logits(self.decoder(tokens_BT))

    def on_train_start(self) -> None:
        self._losses.clear()  # of a fit that ended between two steps
        if line := jumps(self._slots, self._rates, self.trainer.global_step):
            rank_zero_only(print)(line)
        batches, accumulate = self.trainer.num_training_batches, self.trainer.accumulate_grad_batches
        if not self._epoch() and batches != float("inf") and (short := int(batches) % accumulate):
            rank_zero_warn(
                f"data: every epoch of {batches} micro-batches ends with a step of {short} instead of {accumulate} "
                "(trainer.accumulate_grad_batches), whose gradient is so much smaller; give a multiple of it, or an "
                "endless loader"
            )

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        assert self.decoder is not None
        check_batch(batch)
        loss = self.decoder.loss(batch[:, :-1], batch[:, 1:], self._loss[0])
        self._losses.append(loss.detach())
        return loss

    def _mean_loss(self) -> Tensor:
        """The step's mean over micro-batches and processes, with one all-reduce; `sync_dist` adds a barrier."""
        mean = torch.stack(self._losses).mean()
        self._losses.clear()
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(mean)
        return mean / self.trainer.world_size

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        step, every = self.trainer.global_step + 1, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        self.log("train/loss", self._mean_loss(), prog_bar=True)
        # The step of all that is logged: Lightning takes it from here, and else counts from 0.
        self.log("step", float(step))
        if every and step % every == 0:
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
            self.log("train/gradient_norm", norm.full_tensor() if isinstance(norm, DTensor) else norm)
            rates = {f"lr/{slot.pattern}": slot.optimizer.param_groups[0]["lr"] for slot in self._slots}
            self.log_dict(rates | self._epoch())

    def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        # A process that has no sequences left still takes part in gathering sharded weights.
        assert self.decoder is not None
        read = batch if len(batch) else batch.new_zeros(1, batch.shape[1])
        check_batch(read)
        losses = self.decoder.loss(read[:, :-1], read[:, 1:], losses_by_position)
        source = dataloader_idx if self._shares() else 0
        self.validation.update(losses.detach(), batch[:, 1:].numel(), source)

    def on_validation_epoch_end(self) -> None:
        self._log_summary("val")
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.log_dict(self._epoch(), sync_dist=True)

    def _epoch(self) -> dict[str, float]:
        """Passes over the data, in place of Lightning's count, which an endless stream leaves at 0."""
        data = getattr(self.trainer, "datamodule", None)
        seen = getattr(data, "epochs_seen", None)
        by_source = {f"epoch/{name}": passes for name, passes in getattr(data, "source_epochs", {}).items()}
        return {} if seen is None else {"epoch": seen, **by_source}

    def _shares(self) -> dict[str, float]:
        """The weights of the sources that the held-out data are from; none where there is one source."""
        shares: dict[str, float] = getattr(getattr(self.trainer, "datamodule", None), "source_shares", {})
        return shares

    def test_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validation_step(batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        self._log_summary("test")

    def _log_summary(self, split: str) -> None:
        data: Any = getattr(self.trainer, "datamodule", None)
        ratio = data.bytes_per_token if hasattr(data, "bytes_per_token") else lambda **_: None
        losses, by_interval, tokens = self.validation.compute()
        found = summaries(losses.reshape(-1).tolist(), self._shares(), ratio)
        if split == "val":
            self._note_positions(by_interval.tolist(), tokens.tolist())
        self.validation.reset()
        if self.warm_start is not None and self.trainer.global_step == 0 and not self.trainer.sanity_checking:
            self.warm_start.loss = found["loss"]
            rank_zero_only(print)(f"loss of these weights on the held-out split: {found['loss']:.4f}")
        for name, value in found.items():
            # The metric is reduced already: on several processes this is the mean of equal values.
            self.log(f"{split}/{name}", value, prog_bar=name == "loss", sync_dist=True)
        if self.trainer.loggers:
            self.log("step", float(self.trainer.global_step), sync_dist=True)

    def _note_positions(self, losses: list[list[float]], tokens: list[list[float]]) -> None:
        """What this validation found at each position in the context, for the record."""
        names = list(self._shares()) or [""]
        each, longest = zip(names, losses, tokens, strict=True), self.validation.longest
        sources = {name: by_position(loss, count, longest) for name, loss, count in each}
        found = {"step": self.trainer.global_step, "sources": sources}
        self.validation_texts = {POSITIONS: json.dumps(found)} if any(sources.values()) else {}

    def configure_optimizers(self) -> Any:
        steps = self.trainer.estimated_stepping_batches
        # Where that asked an own data module for its length, the loader is there before its state: it is made anew.
        self.trainer.fit_loop._combined_loader = None
        if steps == float("inf"):
            raise UserError("trainer.max_steps: the schedule needs the length of the run: set max_steps or max_epochs")
        optimizer, self._slots = self._build_optimizer(self)
        schedule = self._build_schedule(optimizer, int(steps))
        rank_zero_only(print)(table(coverage(self._slots)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _build_schedule(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        try:
            return self._schedule(optimizer, steps)
        except ValueError as error:
            raise UserError(f"model.schedule: {error}") from error

    def _build_optimizer(self, module: nn.Module) -> tuple[Optimizer, list[Slot]]:
        """The optimizer of a module's parameters: those of its projections are `hidden`."""
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        try:
            return build_optimizer(named, hidden_parameters(module), self._optimizers, deleted_parameters(module))
        except ValueError as error:
            at = "model." if str(error).startswith("optimizers.") else "model.optimizers: "
            raise UserError(f"{at}{error}") from error
