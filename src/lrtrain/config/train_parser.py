"""The configuration parser of `fit`, `validate` and `test`, and what it builds."""

import contextlib
import os
import re
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
from jsonargparse import set_parsing_settings
from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException

from lrtrain.checkpoint.checkpoints import Checkpoints
from lrtrain.config.error_lines import one_line
from lrtrain.config.run_directory import resolve_run
from lrtrain.config.settings import ENV_PREFIX, option_names
from lrtrain.data.datamodule import TokenDataModule
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.own_modules import find_own_modules
from lrtrain.tracking.logger import MLflowLogger
from lrtrain.tracking.run_record import RunRecord
from lrtrain.training.callbacks.nonfinite import NonFiniteGradients
from lrtrain.training.callbacks.step_progress import StepProgress
from lrtrain.training.callbacks.throughput import Throughput
from lrtrain.training.causal_lm import CausalLM
from lrtrain.training.strategy_check import check_strategy


class TrainParser(LightningArgumentParser):
    """Raises a UserError of one line where argparse would print its usage.

    The command line is the class's: the parsers of nested classes, which jsonargparse makes by itself, report it too.
    """

    argv: ClassVar[list[str]] = []
    options: ClassVar[list[str]] = []
    folder: ClassVar[str] = "."

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        # While a file is parsed, the working directory is the file's.
        with contextlib.chdir(self.folder):
            raise UserError(one_line(message, self.argv, self.options)) from ex


class TrainCLI(LightningCLI):
    """One YAML (and overlays) to a model, its data and a Trainer over a run directory.

    Beside Lightning's groups `trainer`, `model` and `data` there are `name` and `runs` (the run lives in
    `<runs>/<name>/<NNNN>`), `checkpoints`, `nonfinite`, and `ckpt_path`.
    """

    run_dir: Path
    resumed: Path | None
    record: RunRecord

    def __init__(self, command: str, argv: list[str]) -> None:
        # Without the second, ${…} is resolved in each file alone, before overlays and the command line are known.
        set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
        find_own_modules(argv)
        self.command = command
        TrainParser.argv, TrainParser.folder = argv, os.getcwd()
        super().__init__(
            CausalLM,
            TokenDataModule,
            save_config_callback=None,
            seed_everything_default=0,
            parser_class=TrainParser,
            parser_kwargs={
                "prog": f"lrtrain {command}",
                "parser_mode": "omegaconf+",
                "default_env": True,
                "env_prefix": ENV_PREFIX,
            },
            args=argv,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, default="run", help="Name of the run; it lives in <runs>/<name>.")
        parser.add_argument("--runs", type=str, default="runs", help="Folder of all runs and of the default tracker.")
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="Checkpoint to resume from or to evaluate: its path, or 'last' for the newest whole one of this name.",
        )
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        parser.add_lightning_class_args(NonFiniteGradients, "nonfinite")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        TrainParser.options = option_names(parser)
        try:
            self.config = parser.parse_args(args)
        except OmegaConfBaseException as error:
            parser.error(str(error), error)
        except UnicodeDecodeError as error:
            parser.error(f"Problems parsing config: {error}", error)
        seed = self.config.seed_everything
        if not 0 <= seed < 2**32:
            raise UserError(f"seed_everything is {seed}: give 0 to {2**32 - 1}")

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (MisconfigurationException, ValueError, TypeError) as error:
            cause: BaseException | None = error
            while cause is not None:
                if isinstance(cause, UserError):
                    raise cause from None
                cause = cause.__cause__
            raise UserError(f"configuration: {' '.join(str(error).split())}") from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        settings = {**self.config_init.trainer, **kwargs}
        check_trainer(settings)
        self.model.check()
        self.run_dir, self.resumed = resolve_run(
            self.command, self.config.runs, self.config.name, self.config.ckpt_path
        )
        self.record = RunRecord(self._record())
        callbacks = settings["callbacks"] or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        callbacks.insert(0, self.config_init.nonfinite)  # before any that acts on gradients
        callbacks += [self.config_init.checkpoints, Throughput(), self.record]
        if settings["enable_progress_bar"] is not False:
            callbacks.append(StepProgress())
        settings |= {
            "callbacks": callbacks,
            "default_root_dir": str(self.run_dir),
            "logger": self._logger(settings["logger"]),
            "precision": settings["precision"] or fastest_precision(),
            "use_distributed_sampler": False,
        }
        if settings["enable_model_summary"] is None:
            settings["enable_model_summary"] = False
        try:
            return Trainer(**settings)
        except (MisconfigurationException, ValueError, TypeError) as error:
            text = " ".join(str(error).split())
            raise UserError(f"{_blamed(text, settings)}: {text}") from error

    def _logger(self, configured: Any) -> Any:
        if self.command != "fit" or configured is False:
            return False
        if configured is None or configured is True:
            configured = MLflowLogger(experiment=self.config.name, root=self.config.runs)
        loggers = configured if isinstance(configured, list) else [configured]
        for logger in loggers:
            if isinstance(logger, MLflowLogger):
                logger.run_dir = str(self.run_dir)
        return configured

    def _record(self) -> str:
        """The resolved configuration as YAML that `--config` takes again."""
        config = self.config.clone()
        config.ckpt_path = None
        return self.parser.dump(config, skip_none=False)


def check_trainer(settings: dict[str, Any]) -> None:
    """Raises UserError for values that Lightning takes and fails at later."""
    if settings["enable_checkpointing"] is False:
        raise UserError("trainer.enable_checkpointing: a run is always saved; see checkpoints.every_n_steps")
    check_strategy(settings["strategy"])
    for key in ("accumulate_grad_batches", "max_steps", "val_check_interval"):
        if settings[key] == 0:
            raise UserError(f"trainer.{key} is 0: give at least 1")


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
