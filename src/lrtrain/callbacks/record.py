"""The record that a run leaves: configuration, tokenizer, data, code and machine."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import yaml

from lrtrain.tracking.logger import MLflowLogger


class RunRecord(L.Callback):
    """Writes `config.yaml` and `tokenizer.json` into the run directory and the whole record to the tracker.

    Args:
        config: The resolved configuration as YAML text.
    """

    def __init__(self, config: str) -> None:
        self.config = config

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit" or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(self.config)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        tokenizer = Path(data.path, "tokenizer.json")
        if tokenizer.is_file():
            shutil.copyfile(tokenizer, folder / "tokenizer.json")
        if isinstance(trainer.logger, MLflowLogger):
            trainer.logger.log_config(self.config, yaml.safe_load(self.config))
            trainer.logger.log_manifest(dataclasses.asdict(data.manifest))
            trainer.logger.log_provenance()
