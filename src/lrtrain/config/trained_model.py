"""A trained model out of a checkpoint: which one a path means, its decoder and its tokenizer."""

import re
from argparse import ArgumentError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from tokenizers import Tokenizer
from torch import Tensor

from lrtrain.checkpoint.checkpoint_io import check_architecture, check_tokenizer, load_without_optimizer
from lrtrain.checkpoint.directory import FOLDER, newest_whole
from lrtrain.checkpoint.huggingface.imported import Ancestor, Imported
from lrtrain.config.run_names import place_of
from lrtrain.nn import Decoder
from lrtrain.nn.projection import before_load
from lrtrain.runtime.errors import UserError
from lrtrain.tracking.course import last_time
from lrtrain.tracking.spool import SPOOL_NAME
from lrtrain.training.causal_lm import DecoderCallable


def newest_checkpoint(path: Path) -> Path:
    """The checkpoint that a path means: itself, or the newest whole one of a run directory or of a folder of runs.

    What is no path may be a run's name (`quickstart`, `quickstart/0001`) in the folder of runs.

    Of several runs the newest is the one whose record was written last, wherever it was copied since.

    Raises:
        UserError: there is none.
    """
    if path.is_file() or (path.is_dir() and path.suffix == ".ckpt"):
        return path
    place = place_of(path)
    if place is None:
        raise UserError(f"{path} does not exist: name a .ckpt file, a run, a run directory or a folder of runs")
    path = place
    folders = sorted(path.rglob(FOLDER), key=_written, reverse=True)
    for folder in [path, *folders]:
        checkpoint, _ = newest_whole(folder)
        if checkpoint is not None:
            return checkpoint
    raise UserError(f"no whole checkpoint under {path}: train one with lrtrain fit, or name a .ckpt file")


def _written(folder: Path) -> float:
    """When the run of a folder of checkpoints was last written to, in ms: by its record, else by the folder."""
    return last_time(folder.parent / SPOOL_NAME) or 1000 * folder.stat().st_mtime


@dataclass(frozen=True)
class TrainedModel:
    """What a checkpoint holds beside the optimizers' states.

    Attributes:
        decoder: In evaluation.
        tokenizer: That of the data.
        recipe: The run's configuration as YAML, `config` the same as a mapping.
        step: Optimizer steps done.
        version: Of lrtrain, when it was saved.
        callbacks: The states of Lightning's callbacks, by their keys.
        imported: Where `lrtrain import` had it from, if no step has changed it since.
        ancestor: The imported model with whose weights its run began, if it did.
    """

    path: Path
    decoder: Decoder
    tokenizer: Tokenizer
    recipe: str
    config: dict[str, Any]
    step: int
    version: str
    callbacks: dict[str, Any]
    imported: Imported | None
    ancestor: Ancestor | None

    @property
    def context(self) -> int | None:
        """Tokens of the longest sequence that the model was made for; None where its data names no block_size."""
        if self.imported is not None:
            return self.imported.context
        data = self.config["data"]
        found = data.get("init_args", data).get("block_size")
        return found if isinstance(found, int) else None

    @property
    def run_dir(self) -> Path | None:
        """The directory of its run, if it lies in a folder of one; None of what no run has made."""
        return self.path.resolve().parent.parent if self.imported is None else None

    def check_data(self, tokenizer_json: str) -> None:
        """Raises UserError for data of another tokenizer."""
        check_tokenizer(self.tokenizer.to_str(), tokenizer_json, str(self.path))


def load(path: Path) -> tuple[Decoder, Tokenizer]:
    """The decoder, in evaluation, and the tokenizer that a checkpoint holds. Raises what `read_trained` does."""
    trained = read_trained(path)
    return trained.decoder, trained.tokenizer


def read_trained(path: Path) -> TrainedModel:
    """The model of a checkpoint. No weight is twice in memory, unless a module of the decoder is a class of one's own.

    Raises:
        UserError: the file is no whole lrtrain checkpoint, or holds no configuration or no tokenizer.
    """
    checkpoint = load_without_optimizer(path)
    own = checkpoint.get("lrtrain", {})
    for part in ("config", "tokenizer"):
        if not own.get(part):
            raise UserError(f"checkpoint {path} holds no {part}: use one of lrtrain fit, with data that has one")
    config = yaml.safe_load(own["config"])
    prefix = "decoder."
    weights = {name.removeprefix(prefix): w for name, w in checkpoint["state_dict"].items() if name.startswith(prefix)}
    return TrainedModel(
        path=path,
        decoder=_filled(config["model"]["decoder"], weights, path),
        tokenizer=Tokenizer.from_str(own["tokenizer"]),
        recipe=own["config"],
        config=config,
        step=checkpoint["global_step"],
        version=own.get("version", ""),
        callbacks=checkpoint.get("callbacks", {}),
        imported=Imported(**own["imported"]) if own.get("imported") else None,
        ancestor=Ancestor(**own["ancestor"]) if own.get("ancestor") else None,
    )


def _filled(config: dict[str, Any], weights: dict[str, Tensor], path: Path) -> Decoder:
    """The decoder with the very tensors that were read."""
    decoder = made_decoder(config, path)
    before_load(decoder, weights)
    check_architecture({"state_dict": weights}, decoder, path)
    decoder.load_state_dict(weights, assign=True)
    return decoder.eval()


def made_decoder(config: dict[str, Any], path: Path) -> Decoder:
    """The decoder of a configuration, for the weights of a checkpoint.

    It is on the meta device, or with fresh weights on the CPU where a module of it is a class of one's own, which may
    keep tensors that no checkpoint holds.

    Raises:
        UserError: a class of it is not here, or takes other arguments.
    """
    try:
        with torch.device("meta"):
            decoder = build_decoder(config)
        if all(type(module).__module__.partition(".")[0] in ("lrtrain", "torch") for module in decoder.modules()):
            return decoder
        return build_decoder(config)
    except ArgumentError as error:
        missing = re.search(r"No module named '(([^'.]+)[^']*)'", str(error))
        if missing is None:
            raise UserError(f"checkpoint {path}: its decoder cannot be made: {' '.join(str(error).split())}") from error
        advice = f"run this in the folder that has {missing[2]}.py"
        raise UserError(f"checkpoint {path} needs the module {missing[1]}, which is not here: {advice}") from error


def build_decoder(config: dict[str, Any]) -> Decoder:
    """The decoder of a configuration's `model.decoder`, with fresh weights."""
    parser = _parser()
    return parser.instantiate_classes(parser.parse_object({"decoder": config})).decoder()


def resolved_decoder(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration's `model.decoder` with the defaults of what it leaves out."""
    resolved: dict[str, Any] = _parser().parse_object({"decoder": config}).as_dict()["decoder"]
    return resolved


def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--decoder", type=DecoderCallable)
    return parser
