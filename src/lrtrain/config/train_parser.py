"""The configuration parser of `fit`, `validate` and `test`, and what it builds."""

import contextlib
import io
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import register_unresolvable_import_paths
from lightning import Trainer, seed_everything
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lrtrain.checkpoint.checkpoints import Checkpoints
from lrtrain.config.base_recipe import BASE, base_recipe
from lrtrain.config.error_lines import one_line
from lrtrain.config.export_settings import Export
from lrtrain.config.init_from import Origin, warm_start
from lrtrain.config.overlaid import overlaid
from lrtrain.config.own_data import add_own_data
from lrtrain.config.parser import Parser, new_parser, read
from lrtrain.config.run_directory import Place, resolve_run
from lrtrain.config.settings import command_line
from lrtrain.data.datamodule import TokenDataModule
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.ranks import is_first
from lrtrain.tracking.logger import MLflowLogger, own_logger
from lrtrain.tracking.run_record import RunRecord
from lrtrain.training.callbacks.closing_validation import ClosingValidation
from lrtrain.training.callbacks.heartbeat import Heartbeat
from lrtrain.training.callbacks.nonfinite import NonFiniteGradients
from lrtrain.training.callbacks.roll_call import RollCall
from lrtrain.training.callbacks.step_progress import StepProgress
from lrtrain.training.callbacks.text_samples import TextSamples
from lrtrain.training.callbacks.throughput import Throughput
from lrtrain.training.causal_lm import CausalLM
from lrtrain.training.checks import check_precision, check_strategy

GROUPS: dict[str, type] = {
    "trainer": Trainer,
    "model": CausalLM,
    "data": TokenDataModule,
    "checkpoints": Checkpoints,
    "nonfinite": NonFiniteGradients,
    "heartbeat": Heartbeat,
    "export": Export,
}
"""Group of keys -> the class whose arguments they are."""

REFUSALS = (MisconfigurationException, ValueError, TypeError, OverflowError, ImportError, RuntimeError)
"""What a class raises of an argument: a value it cannot take, a package that is missing, memory that is not there."""


def train_parser(command: str, argv: list[str]) -> Parser:
    """The parser of a command that trains or evaluates, for a command line that may name an own class of `data`."""
    register_unresolvable_import_paths(torch)
    parser = new_parser(command)
    own_data = add_own_data(parser, argv)
    for group, kind in GROUPS.items():
        if own_data and group == "data":
            continue
        # The Trainer is made last, with more callbacks than the configuration names.
        parser.add_class_arguments(kind, group, fail_untyped=False, instantiate=kind is not Trainer, sub_configs=True)
    return parser


class Configured:
    """A configuration, parsed, built and checked as far as that needs no data, no weights and no run directory.

    Beside the groups there are `name` and `runs` (the run lives in `<runs>/<name>/<NNNN>`) and `ckpt_path`.

    Raises:
        UserError: an unknown key, or a value of a wrong type or out of range.
    """

    def __init__(self, command: str, argv: list[str]) -> None:
        for name in ("lightning.pytorch", "lightning.fabric"):  # only now: Lightning sets its own when imported
            logging.getLogger(name).setLevel(logging.WARNING)
        self.parser = train_parser(command, argv)
        self.config = read(self.parser, argv)
        seed_everything(self.config.seed_everything, workers=True)
        with _one_line():
            self.parts = self.parser.instantiate(self.config)
            self.model: CausalLM = self.parts.model
            self.datamodule = self.parts.data
            check_trainer(self.parts.trainer)
            if command == "fit":
                check_length(self.parts.trainer)
            self.model.check()

    def as_yaml(self) -> str:
        """The complete configuration as YAML that `--config` takes again."""
        config = self.config.clone()
        config.ckpt_path = None
        return self.parser.dump(config, skip_none=False)


def resolve_config(configs: Sequence[Path], settings: dict[str, Any]) -> str:
    """The complete configuration that files and settings (by dotted key) make, as YAML that `--config` takes.

    Raises:
        UserError: what `lrtrain fit` would refuse: an unknown key, or a value of a wrong type or out of range.
    """
    with contextlib.redirect_stderr(io.StringIO()):
        return Configured("fit", command_line(configs, settings)).as_yaml()


class TrainingRun(Configured):
    """A configuration's model and data with a Trainer over its run directory."""

    def __init__(self, command: str, argv: list[str]) -> None:
        super().__init__(command, argv)
        if command != "fit" and Parser.settings.place("init_from").startswith("--") and self.config.init_from:
            raise UserError(f"--init_from: {command} takes the weights of a run's checkpoint: name it by --ckpt_path")
        if is_first():
            for line in overlaid(Parser.settings, self.config):
                print(line)
        with _one_line():
            config = self.config
            place = resolve_run(
                command,
                config.runs,
                config.name,
                config.ckpt_path,
                config.checkpoints.path,
                config.trainer.num_nodes,
                config.init_from,
            )
            self.run_dir, self.resumed = place.directory, place.checkpoint
            self._begin_from(place)
            self.record, self.roll_call = RunRecord(self.as_yaml()), RollCall()
            base = base_recipe(Parser.settings)
            self.record.texts[BASE] = lambda: base
            if beginning := self.model.warm_start:
                self.record.texts["init_from.txt"] = lambda: beginning.report
            self.trainer = self._trainer(dict(self.parts.trainer), tracked=command == "fit")
            self.parts.heartbeat.start(self.trainer.local_rank)

    def _begin_from(self, place: Place) -> None:
        """Lets the model begin with the weights of `init_from`, and the record say which these were."""
        self.config.init_from = place.init_from
        origin = Origin.noted(place.init_from) if place.init_from and place.weights else None
        if origin is not None and place.weights is not None:
            decoder = yaml.safe_load(self.as_yaml())["model"]["decoder"]
            self.model.warm_start = warm_start(origin, place.weights, decoder)
            self.parts.checkpoints.validate_first = True
            self.parts.checkpoints.ancestor = self.model.warm_start.saved.ancestor

    def finish_copy(self) -> None:
        """Waits until the store has what `checkpoints.path` asks for, with the record as it is at the end.

        Raises:
            UserError: the store does not take it, or does not answer (TemporaryError).
        """
        saver = getattr(self.parts.checkpoints, "saver", None)
        if saver is not None and saver.uploads is not None:
            saver.uploads.finish()

    def _trainer(self, settings: dict[str, Any], tracked: bool) -> Trainer:
        callbacks = settings["callbacks"] or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        callbacks[:0] = [self.roll_call, self.parts.nonfinite]  # before any that takes time, or acts on gradients
        own_samples = any(isinstance(one, TextSamples) for one in callbacks)
        callbacks += [self.parts.checkpoints, ClosingValidation(), *([] if own_samples else [TextSamples()])]
        callbacks += [Throughput(), self.record, self.parts.heartbeat]
        if settings["enable_progress_bar"] is not False:
            callbacks.append(StepProgress())
        settings |= {
            "callbacks": callbacks,
            "default_root_dir": str(self.run_dir),
            "logger": self._loggers(settings["logger"]) if tracked else False,
            "precision": settings["precision"] or fastest_precision(),
            # Token shards are dealt out to the processes by themselves.
            "use_distributed_sampler": not isinstance(self.datamodule, TokenDataModule),
            "enable_model_summary": settings["enable_model_summary"] or False,
        }
        if settings["profiler"]:
            logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # what it found is an info to it
        try:
            return Trainer(**settings)
        except REFUSALS as error:
            text = " ".join(str(error).split())
            raise UserError(f"{_blamed(text, settings)}: {text}") from error

    def _loggers(self, configured: Any) -> list[Any]:
        """The configured loggers, and the one that keeps the record; without MLflow where there are to be none."""
        loggers = configured if isinstance(configured, list) else [configured]
        loggers = [logger for logger in loggers if not isinstance(logger, bool | None)]
        if own_logger(loggers) is None:
            send = configured is not False and configured != []
            loggers.append(MLflowLogger(root=self.config.runs, send=send))
        for logger in loggers:
            if isinstance(logger, MLflowLogger):
                logger.run_dir = str(self.run_dir)
                logger.group = logger.group or self.config.name
        return loggers


def check_trainer(settings: Any) -> None:
    """Raises UserError for values that Lightning takes and fails at later."""
    if settings["enable_checkpointing"] is False:
        raise UserError("trainer.enable_checkpointing: a run is always saved; see checkpoints.every_n_steps")
    check_strategy(settings["strategy"])
    check_precision(settings["precision"])
    for key in ("accumulate_grad_batches", "max_steps", "val_check_interval", "check_val_every_n_epoch"):
        if settings[key] == 0:
            raise UserError(f"trainer.{key} is 0: give at least 1")
    clip = settings["gradient_clip_val"]
    if clip is not None and not clip >= 0:
        raise UserError(f"trainer.gradient_clip_val is {clip:g}: give the largest norm of the gradient, or null")


def check_length(settings: Any) -> None:
    """Raises UserError for a run without an end, of which Lightning would train 1000 epochs, or without a step."""
    if settings["limit_train_batches"] == 0:
        raise UserError("trainer.limit_train_batches is 0: nothing would be trained; see lrtrain validate")
    if settings["max_steps"] == -1 and settings["max_epochs"] in (None, -1) and not settings["fast_dev_run"]:
        raise UserError("trainer.max_steps: the schedule needs the length of the run: set max_steps or max_epochs")


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Raises a UserError for what a class says of its arguments: its own line, if it has one."""
    try:
        yield
    except REFUSALS as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause from None
            cause = cause.__cause__
        raise UserError(f"configuration: {one_line(str(error), Parser.settings, [])}") from error


def _blamed(text: str, settings: dict[str, Any]) -> str:
    """The Trainer's setting that its complaint names, or else the one whose value it names."""
    named = [k for k in settings if re.search(rf"\b{k}[`=]", text)] or [
        k for k in settings if re.search(rf"\b{k}\b", text)
    ]
    named += [k for k, v in settings.items() if isinstance(v, str) and re.search(rf"\b{re.escape(v)}\b", text)]
    return f"trainer.{named[0]} is {settings[named[0]]}" if named else "trainer"


def fastest_precision() -> str:
    """bf16-mixed where the hardware multiplies bfloat16 natively, else 32-true."""
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bf16-mixed" if native else "32-true"
