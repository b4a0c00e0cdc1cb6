"""The model that is evaluated: a checkpoint's or a folder's, and what is known of it."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from lrtrain.config.exporting import block_size
from lrtrain.config.text_generation import put_before
from lrtrain.config.trained_model import read_trained
from lrtrain.nn import order_for_decoding
from lrtrain.runtime.errors import UserError
from lrtrain.studies.evaluation.decoder_lm import DecoderLM
from lrtrain.studies.evaluation.exported_lm import exported_lm


@dataclass(frozen=True)
class EvaluatedModel:
    """A model as lm-eval takes it.

    Attributes:
        lm: lm-eval's LM.
        path: The checkpoint or the folder.
        step: Optimizer steps of the checkpoint; None for a folder.
        run_dir: The run that the checkpoint lies in, where that is on this disk.
        facts: For the JSON.
    """

    lm: Any
    path: Path
    step: int | None = None
    run_dir: Path | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def trained_model(
    checkpoint: Path, batch_size: int, context: int | None, device: str | None, here: bool = True
) -> EvaluatedModel:
    """A checkpoint's model, in float32; its run is the one whose directory it lies in, if it is `here`.

    Raises:
        UserError: it is no whole checkpoint of lrtrain, holds no tokenizer, or the device is not there.
    """
    trained = read_trained(checkpoint)
    imported = trained.imported
    length = context or trained.context or block_size(trained.config["data"], "evaluate")
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        decoder = trained.decoder.to(where)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {where}: {' '.join(str(error).split())[:200]}") from error
    order_for_decoding(decoder, batch_size)
    run_dir = trained.run_dir if here else None
    facts = {"name": trained.config["name"], "version": trained.version, "context": length, "dtype": "float32"}
    around = {} if imported is None else _around(trained.tokenizer, imported.special, imported.stop_tokens())
    lm = DecoderLM(decoder, trained.tokenizer, length, batch_size, **around, bar=sys.stderr.isatty())
    return EvaluatedModel(lm, checkpoint, trained.step, run_dir, facts)


def _around(tokenizer: Tokenizer, special: Mapping[str, str], ends: list[int]) -> dict[str, Any]:
    """What an imported model has before and behind texts, as lm-eval takes it from its folder."""
    first = special.get("bos_token") or special.get("eos_token")
    return {
        "prefix": None if first is None else tokenizer.token_to_id(first),
        "before": put_before(tokenizer),
        "ends": ends,
    }


def exported_model(
    folder: Path, batch_size: int, context: int | None, device: str | None, trusted: bool
) -> EvaluatedModel:
    """A folder's model, by lm-eval's own `hf`, in the dtype of its weights. Raises what `exported_lm` does."""
    lm = exported_lm(folder, batch_size, context, device, trusted)
    return EvaluatedModel(lm, folder, facts={"context": lm.max_length, "dtype": str(lm.model.dtype)})
