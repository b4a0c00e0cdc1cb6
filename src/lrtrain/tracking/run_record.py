"""The record that a run leaves: configuration, tokenizer, data, code and machine."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import fsspec
import lightning as L
import yaml

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import write_atomically, writing
from lrtrain.tracking.logger import OWNER_PATIENCE, MLflowLogger
from lrtrain.tracking.spool import SPOOL_NAME, Spool


class RunRecord(L.Callback):
    """Writes `config.yaml` and `tokenizer.json` into the run directory and the whole record to the tracker.

    That happens when the first batch is there: a run that is refused before leaves no record, and a resumed one keeps
    its own. `written` says so.

    Args:
        config: The resolved configuration as YAML text.

    Raises:
        UserError: another process trains in the run directory, the tokenizer is not that of the shards, or the disk is
            full.
    """

    def __init__(self, config: str) -> None:
        self.config = config
        self.written = False
        self._tokenizer = ""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            folder = Path(trainer.default_root_dir)
            if isinstance(trainer.logger, MLflowLogger) and trainer.is_global_zero and (folder / SPOOL_NAME).is_file():
                Spool(folder, OWNER_PATIENCE).close()  # while another process owns it, its checkpoints must stay
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            self._tokenizer = read_tokenizer(data.path, data.manifest.tokenizer_sha256)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self.written and trainer.is_global_zero:
            self._write(trainer)
        self.written = True

    def _write(self, trainer: L.Trainer) -> None:
        folder = Path(trainer.default_root_dir)
        with writing(f"cannot write into {folder}", "make room, or set --runs to another disk"):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "config.yaml", self.config.encode())
            write_atomically(folder / "tokenizer.json", self._tokenizer.encode())
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(trainer.logger, MLflowLogger):
            trainer.logger.log_config(self.config, yaml.safe_load(self.config))
            trainer.logger.log_manifest(dataclasses.asdict(data.manifest))
            trainer.logger.log_provenance()


def read_tokenizer(path: str, sha256: str) -> str:
    """The text of `tokenizer.json` in a data set's folder or URL.

    Raises:
        UserError: it cannot be read, or is not the one that the shards were made with.
    """
    file = f"{path}/tokenizer.json"
    try:
        with fsspec.open(file, "rb") as stream:
            content: bytes = stream.read()
    except Exception as error:  # each file system has errors of its own
        raise UserError(
            f"cannot read {file} ({type(error).__name__}): copy it there, or prepare the data again"
        ) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(
            f"{file} is not the tokenizer of the shards beside it: copy that there, or prepare the data again"
        )
    return content.decode("utf-8")
