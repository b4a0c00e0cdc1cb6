"""The group `export` of a run: refused before the first step, or written after the last."""

import contextlib
import re
import shutil
from pathlib import Path

import torch
import yaml

from lrtrain.checkpoint.directory import FOLDER, step_path
from lrtrain.checkpoint.huggingface.exported_folder import check_packages
from lrtrain.checkpoint.huggingface.llama_layout import check_exportable
from lrtrain.checkpoint.shard_folder import digest
from lrtrain.config.export_target import is_whole, upload
from lrtrain.config.exporting import block_size, export
from lrtrain.config.train_parser import TrainingRun
from lrtrain.config.trained_model import build_decoder
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import writing
from lrtrain.runtime.stores import joined
from lrtrain.tracking.logger import own_logger
from lrtrain.tracking.registry import register

SUFFIX = ".hf"


def export_is_possible(run: TrainingRun) -> None:
    """Raises UserError where `export.format` asks for what could not be written at the end."""
    settings = run.parts.export
    if settings.format is None:
        return
    check_packages()
    logger = own_logger(run.trainer.loggers)
    if settings.register is not None and (logger is None or logger.tracking_uri is None):
        raise UserError("export.register: this run is not in MLflow: set trainer.logger to null")
    config = yaml.safe_load(run.as_yaml())
    with torch.device("meta"):
        check_exportable(build_decoder(config["model"]["decoder"]), settings.format == "factorized")
    block_size(config["data"])
    if not hasattr(run.datamodule, "tokenizer_json"):
        kind = f"{type(run.datamodule).__module__}.{type(run.datamodule).__qualname__}"
        raise UserError(f"export.format: {kind} has no tokenizer_json(), and a folder has a tokenizer; set it to null")


def export_last(run: TrainingRun) -> None:
    """Writes the folder beside the checkpoint of the last step, by the first process, unless it is there; with
    `checkpoints.path` also beside that one's copy in the store.

    Raises:
        UserError: on every process, where the folder cannot be written; the checkpoint is whole all the same.
    """
    settings, trainer = run.parts.export, run.trainer
    if settings.format is None:
        return
    error = None
    checkpoint = step_path(run.run_dir / FOLDER, trainer.global_step)
    out = checkpoint.with_suffix(SUFFIX)
    if trainer.is_global_zero and checkpoint.exists():
        print()
        try:
            if _is_of_others(out, checkpoint):
                with writing(f"cannot replace {out}", "remove it"):
                    shutil.rmtree(out)
            if fresh := not out.exists():
                export(checkpoint, out, settings)
                _register(out, run)
            _copy(out, run, fresh)
        except UserError as caught:
            error = f"{caught}. The run is finished: lrtrain export {checkpoint} --out DIR writes it later"
    if error := trainer.strategy.broadcast(error):
        raise UserError(error)


def _register(folder: Path, run: TrainingRun) -> None:
    if name := run.parts.export.register:
        print(f"{'registered':<15} {name}, version {register(run.run_dir, folder, name)}")


def _is_of_others(folder: Path, checkpoint: Path) -> bool:
    """Whether a folder was made of other weights of the same step, before the run went on from an earlier one."""
    with contextlib.suppress(OSError):
        found = re.search(r", sha256 ([0-9a-f]{64}) \|", (folder / "README.md").read_text(encoding="utf-8"))
        return found is not None and found[1] != digest(checkpoint)
    return False


def _copy(folder: Path, run: TrainingRun, fresh: bool) -> None:
    uploads = run.parts.checkpoints.saver.uploads
    if uploads is None:
        return
    url = joined(uploads.url, f"{FOLDER}/{folder.name}")
    if fresh or not is_whole(url):
        upload(folder, url)
        print(f"{'copied to':<15} {url}")
