"""A trained model out of a checkpoint: which one a path means, its decoder and its tokenizer."""

import re
from argparse import ArgumentError
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from tokenizers import Tokenizer

from lrtrain.checkpoint.checkpoint_io import AtomicCheckpointIO, check_architecture
from lrtrain.checkpoint.directory import FOLDER, newest_whole
from lrtrain.nn import Decoder
from lrtrain.nn.projection import before_load
from lrtrain.runtime.errors import UserError
from lrtrain.tracking.course import last_time
from lrtrain.tracking.spool import SPOOL_NAME
from lrtrain.training.causal_lm import DecoderCallable


def newest_checkpoint(path: Path) -> Path:
    """The checkpoint that a path means: itself, or the newest whole one of a run directory or of a folder of runs.

    Of several runs the newest is the one whose record was written last, wherever it was copied since.

    Raises:
        UserError: there is none.
    """
    if path.is_file() or (path.is_dir() and path.suffix == ".ckpt"):
        return path
    if not path.exists():
        raise UserError(f"{path} does not exist: name a .ckpt file, a run directory or a folder of runs")
    folders = sorted(path.rglob(FOLDER), key=_written, reverse=True)
    for folder in [path, *folders]:
        checkpoint, _ = newest_whole(folder)
        if checkpoint is not None:
            return checkpoint
    raise UserError(f"no whole checkpoint under {path}: train one with lrtrain fit, or name a .ckpt file")


def _written(folder: Path) -> float:
    """When the run of a folder of checkpoints was last written to, in ms: by its record, else by the folder."""
    return last_time(folder.parent / SPOOL_NAME) or 1000 * folder.stat().st_mtime


def load(path: Path) -> tuple[Decoder, Tokenizer]:
    """The decoder, in evaluation, and the tokenizer that a checkpoint holds.

    Raises:
        UserError: the file is no whole lrtrain checkpoint, or holds no configuration or no tokenizer.
    """
    checkpoint = AtomicCheckpointIO().load_checkpoint(path)
    own = checkpoint.get("lrtrain", {})
    for part in ("config", "tokenizer"):
        if not own.get(part):
            raise UserError(f"checkpoint {path} holds no {part}: use one of lrtrain fit, with data that has one")
    try:
        decoder = build_decoder(yaml.safe_load(own["config"])["model"]["decoder"])
    except ArgumentError as error:
        missing = re.search(r"No module named '(([^'.]+)[^']*)'", str(error))
        if missing is None:
            raise UserError(f"checkpoint {path}: its decoder cannot be made: {' '.join(str(error).split())}") from error
        advice = f"run this in the folder that has {missing[2]}.py"
        raise UserError(f"checkpoint {path} needs the module {missing[1]}, which is not here: {advice}") from error
    prefix = "decoder."
    weights = {name.removeprefix(prefix): w for name, w in checkpoint["state_dict"].items() if name.startswith(prefix)}
    before_load(decoder, weights)
    check_architecture({"state_dict": weights}, decoder, path)
    decoder.load_state_dict(weights)
    return decoder.eval(), Tokenizer.from_str(own["tokenizer"])


def build_decoder(config: dict[str, Any]) -> Decoder:
    """The decoder of a configuration's `model.decoder`, with fresh weights."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--decoder", type=DecoderCallable)
    return parser.instantiate_classes(parser.parse_object({"decoder": config})).decoder()
