"""The record that a run leaves: configuration, tokenizer, data, code and machine."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.utilities import rank_zero_only

from lrtrain.runtime.files import write_atomically, writing
from lrtrain.tracking.logger import OWNER_PATIENCE, MLflowLogger, own_logger
from lrtrain.tracking.run_note import run_note
from lrtrain.tracking.spool import SPOOL_NAME, Spool

DATA_TELLS = {
    "check": "it has no check(vocab_size), so ids beyond the model's vocabulary are not seen before training",
    "bytes_per_token": "no bytes_per_token(), so no bits per byte",
    "tokenizer_json": "no tokenizer_json(), so checkpoints hold no tokenizer and generate cannot use them",
    "manifest": "no manifest, so no record of the data",
}
"""What a DataModule may tell beside its batches -> what there is not without it."""


MATTER_FIRST = ("model", "data", "trainer")
"""The groups of a configuration that a user looks for first."""


class RunRecord(L.Callback):
    """Writes `config.yaml` and `tokenizer.json` into the run directory and the whole record to the tracker.

    That happens when the first batch is there: a run that is refused before leaves no record, and a resumed one keeps
    its own. `written` says so. `trainer.fast_dev_run` leaves nothing.

    Args:
        config: The resolved configuration as YAML text.

    Attributes:
        texts: Name of an artifact -> what makes its text when the first batch is there; an empty one is left out.
        report: Makes the file that closes the record, of a run directory, when a fit has come to its end; none if None.

    After each validation, what the model and the callbacks hold in `validation_texts` (name of an artifact -> text) is
    recorded at that step.

    Raises:
        UserError: another process trains in the run directory, the tokenizer is not that of the shards, or the disk is
            full.
    """

    def __init__(self, config: str) -> None:
        self.config = config
        self.written = False
        self.texts: dict[str, Callable[[], str]] = {}
        self.report: Callable[[Path], Path] | None = None
        self._tokenizer: str | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            folder = Path(trainer.default_root_dir)
            if own_logger(trainer.loggers) and trainer.is_global_zero and (folder / SPOOL_NAME).is_file():
                Spool(folder, OWNER_PATIENCE).close()  # while another process owns it, its checkpoints must stay
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            if lacks := [what for name, what in DATA_TELLS.items() if not hasattr(data, name)]:
                rank_zero_only(print)(f"data {type(data).__module__}.{type(data).__name__}: {'; '.join(lacks)}")
            self._tokenizer = data.tokenizer_json() if hasattr(data, "tokenizer_json") else None

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if logger := own_logger(trainer.loggers):
            logger.resume(checkpoint["global_step"])

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self.written and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._write(trainer, pl_module)
        self.written = True

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        logger = own_logger(trainer.loggers)
        if logger is None or trainer.sanity_checking or not trainer.is_global_zero:
            return
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for part in (pl_module, *callbacks):
            for name, text in getattr(part, "validation_texts", {}).items():
                logger.log_text(name, text, trainer.global_step)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        closed_late = stage == "validate"  # what was still due when the process of a run had gone
        if self.report is None or not (self.written or closed_late) or not trainer.is_global_zero:
            return
        logger, folder = own_logger(trainer.loggers), Path(trainer.default_root_dir)
        if logger is None or not (folder / SPOOL_NAME).is_file():
            return
        try:
            logger.log_file(self.report(folder).name)
        except Exception as error:  # the run is whole without a page, whatever goes wrong with that
            print(f"no report: {type(error).__name__}: {error}; `lrtrain report {folder}` tries again", flush=True)

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = Path(trainer.default_root_dir)
        with writing(f"cannot write into {folder}", "make room, or set --runs to another disk"):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "config.yaml", self.config.encode())
            if self._tokenizer is not None:
                write_atomically(folder / "tokenizer.json", self._tokenizer.encode())
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if logger := own_logger(trainer.loggers):
            config = yaml.safe_load(self.config)
            # MLflow shows parameters in the order in which they come.
            logger.log_config(self.config, {key: config[key] for key in (*MATTER_FIRST, *config) if key in config})
            if hasattr(data, "manifest"):
                logger.log_manifest(dataclasses.asdict(data.manifest))
            for source in getattr(data, "sources", ()):
                if hasattr(source, "manifest"):
                    _log_datasets(logger, source)
            logger.log_note(run_note(folder, config, pl_module))
            logger.log_provenance()
            for name, make in self.texts.items():
                if text := make():
                    logger.log_text(name, text)


def _log_datasets(logger: MLflowLogger, source: Any) -> None:
    """Both splits of a prepared data set, as MLflow shows what a run was trained and validated on."""
    name = source.name or Path(source.path).name
    for split, context in (("train", "training"), ("val", "validation")):
        of_split = source.manifest.split(split)
        profile = {"documents": of_split.documents, "tokens": of_split.tokens, "bytes": of_split.bytes}
        logger.log_dataset(f"{name} ({split})", of_split.digest, source.path, profile, context)
