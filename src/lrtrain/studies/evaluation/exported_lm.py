"""An exported folder as lm-eval's own `hf` model, with what is wrong with a folder in a line."""

import json
import sys
from pathlib import Path
from typing import Any

from lrtrain.runtime.errors import UserError
from lrtrain.studies.evaluation.harness_tasks import check_harness

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def is_exported(path: Path) -> bool:
    """Whether a path is a folder of a model for transformers: `lrtrain export` writes one, as others do."""
    return (path / "config.json").is_file()


def exported_lm(folder: Path, batch_size: int, context: int | None, device: str | None, trusted: bool) -> Any:
    """Loads lm-eval's `hf` model.

    Args:
        folder: With config.json, weights and tokenizer.
        batch_size: Sequences in a batch.
        context: Tokens; the folder's own number where None.
        device: As torch names it; a GPU if there is one where None.
        trusted: Whether code that lies in the folder may run.

    Raises:
        UserError: a file is missing, the folder's code is not trusted, a package is missing, or transformers cannot
            load it.
    """
    check_harness()
    check_folder(folder, trusted)
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return HFLM(str(folder), batch_size=batch_size, max_length=context, device=where, trust_remote_code=trusted)
    except Exception as error:  # transformers, safetensors and the folder's code raise what they like
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{folder}: transformers cannot load it: {reason}") from error


def check_folder(folder: Path, trusted: bool) -> None:
    """Raises UserError for what can be said without transformers."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/config.json cannot be read ({error}): export the model again") from error
    if "auto_map" in config and not trusted:
        files = ", ".join(sorted({f"{place.partition('.')[0]}.py" for place in config["auto_map"].values()}))
        raise UserError(
            f"{folder} computes with code of its own ({files}), which runs with your rights: read it, then give "
            "--trust-remote-code; or lrtrain export without --factorized, or evaluate the checkpoint, which need none"
        )
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise UserError(f"{folder} has no tokenizer (no {' or '.join(TOKENIZERS)}): export the model again")
    index = next((folder / name for name in INDEXES if (folder / name).is_file()), None)
    if index is None:
        if not any((folder / name).is_file() for name in WEIGHTS):
            raise UserError(f"{folder} has no weights (no {' or '.join((*WEIGHTS, *INDEXES))}): export the model again")
        return
    try:
        shards = {str(file) for file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{index} cannot be read ({error}): export the model again") from error
    if missing := sorted(name for name in shards if not (folder / name).is_file()):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{folder} lacks {missing[0]}{more}, which {index.name} names: copy the folder again, whole")
