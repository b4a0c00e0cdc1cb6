"""A decoder and its tokenizer as a folder for transformers: written, loaded again, compared, and only then there."""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from tokenizers import Tokenizer

from lrtrain.checkpoint.huggingface import llama_layout, logit_check
from lrtrain.checkpoint.huggingface.imported import Imported
from lrtrain.checkpoint.huggingface.llama_layout import MODELING, check_exportable
from lrtrain.checkpoint.huggingface.safetensors_shards import write_shards
from lrtrain.checkpoint.huggingface.tokenizer_files import check_tokens, write_tokenizer
from lrtrain.data.tokenizer import end_of_text, vocabulary_size
from lrtrain.nn import Decoder
from lrtrain.runtime.allocator import give_back_freed_memory
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import NO_ROOM, alone, fsync_folder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PARTIAL = ".partial"
PACKAGES = ("transformers", "safetensors")


@dataclass(frozen=True)
class Written:
    """What is in a folder, and how far transformers' logits for it are from ours.

    Attributes:
        parameters: Numbers in the weights.
        bytes: Of the shards.
        shards: Files of weights.
        difference: Largest difference of a logit; `bound` is the largest that passes.
        rounded: Largest difference that the dtype alone makes, to the logits of the float32 weights.
        tokens: In the text that was compared.
    """

    parameters: int
    bytes: int
    shards: int
    difference: float
    bound: float
    rounded: float
    tokens: int


def check_packages(command: str = "export") -> None:
    """Raises UserError where transformers or safetensors is not installed."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"{command} needs {' and '.join(missing)}, which is not installed: pip install 'lrtrain[hf]'")


def check_target(out: Path) -> Path:
    """The folder to write, as an absolute path. Raises UserError where something is there."""
    out = out.expanduser().resolve()
    if out.is_dir() and not any(out.iterdir()) and out != Path.cwd():
        return out
    if out.exists():
        raise UserError(f"--out {out}: exists already; name a new folder")
    return out


def write_folder(
    decoder: Decoder,
    tokenizer: Tokenizer,
    out: Path,
    length: int,
    keep_factors: bool,
    dtype: str,
    shard_bytes: float,
    texts: Callable[[Written], dict[str, str]],
    imported: Imported | None = None,
) -> Written:
    """Writes a folder that is whole or absent.

    The decoder's weights are freed on the way, so that transformers' copy is the only one while it is compared.

    Args:
        decoder: In evaluation, on the CPU.
        tokenizer: Of its data.
        out: The folder, which is not there yet.
        length: Tokens of the longest sequence that the decoder was trained on.
        keep_factors: Write A and B, or U, s and V, with the file that computes with them; else the products.
        dtype: Of the weights: float32, bfloat16 or float16.
        shard_bytes: The size of a shard, at most.
        texts: Makes further files, by name, from what was written.
        imported: The model that these weights still are, whose special tokens the folder keeps.

    Raises:
        UserError: the decoder is no Llama, a weight is not finite, transformers computes something else, the disk is
            full or refuses, or a package is missing.
    """
    check_packages()
    check_exportable(decoder, keep_factors)
    size, rows = vocabulary_size(tokenizer), decoder.head_VD.shape[0]
    if size > rows:
        raise UserError(f"export: the tokenizer has {size:,} tokens and the model embeds {rows:,}: they do not fit")
    tensors = list(llama_layout.entries(decoder, keep_factors))
    parameters = sum(prod(entry.shape) for entry in tensors)
    with _whole_or_absent(out, parameters * DTYPES[dtype].itemsize) as partial:
        config = llama_layout.llama_config(decoder, length, end_of_text(tokenizer), keep_factors)
        config |= imported.ends if imported is not None else {}
        stops = imported.stop_tokens() if imported is not None else []
        ends = {"bos_token_id": config["bos_token_id"], "eos_token_id": stops or config["eos_token_id"]}
        padding = config["pad_token_id"] if imported is not None else config["eos_token_id"]
        _write_json(partial / "config.json", config | {"dtype": dtype, "torch_dtype": dtype})
        _write_json(partial / "generation_config.json", ends | {"pad_token_id": padding})
        write_tokenizer(tokenizer, length, partial, imported)
        if keep_factors:
            shutil.copyfile(Path(__file__).with_name(f"{MODELING}.py"), partial / f"{MODELING}.py")
        try:
            shards = write_shards(tensors, DTYPES[dtype], partial, shard_bytes)
        except ValueError as error:
            raise UserError(f"export: {error}") from error
        del tensors
        size = sum((partial / shard).stat().st_size for shard in shards)
        difference, bound, rounded, tokens = _compare(
            decoder, tokenizer, partial, length, keep_factors, dtype, parameters
        )
        written = Written(parameters, size, len(shards), difference, bound, rounded, tokens)
        for name, text in texts(written).items():
            (partial / name).write_text(text, encoding="utf-8")
    return written


def _compare(
    decoder: Decoder,
    tokenizer: Tokenizer,
    folder: Path,
    length: int,
    keep_factors: bool,
    dtype: str,
    parameters: int,
) -> tuple[float, float, float, int]:
    """The largest difference to transformers' logits, its bound, what rounding alone changes, and the tokens."""
    tokens = logit_check.text_tokens(tokenizer, length)
    exact = ours = logit_check.our_logits(decoder, tokens)
    if not exact.isfinite().all():
        raise UserError("export: the model's logits are no finite numbers; name an earlier checkpoint")
    if dtype != "float32":
        logit_check.round_weights(decoder, DTYPES[dtype], keep_factors)
        ours = logit_check.our_logits(decoder, tokens)
    decoder.to("meta")  # frees the weights, whoever holds the decoder
    give_back_freed_memory()
    with logit_check.quiet_transformers():
        check_tokens(tokenizer, folder, logit_check.TEXT)
        theirs, loaded = logit_check.their_logits(folder, keep_factors, tokens)
    if loaded != parameters:
        raise UserError(f"export: transformers loads {loaded:,} parameters, {parameters:,} were written")
    difference, bound = float((theirs - ours).abs().max()), logit_check.BOUND * float(ours.abs().max())
    if not difference <= bound:
        raise UserError(
            f"export: transformers' logits differ from ours by up to {difference:.1e}, more than {bound:.1e} "
            f"({logit_check.BOUND:g} of the largest): nothing was written"
        )
    return difference, bound, float((ours - exact).abs().max()), tokens.numel()


@contextmanager
def _whole_or_absent(out: Path, size: int) -> Iterator[Path]:
    """A folder beside `out`, which takes its name when the block has ended well and all is on disk, else is gone."""
    partial, lock = out.with_name(out.name + PARTIAL), out.with_name(f".{out.name}.lock")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with alone(lock, f"--out {out}: another process writes it just now; name another folder"), _gone(partial):
            check_target(out)
            partial.mkdir()
            yield partial
            for file in partial.iterdir():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            fsync_folder(partial)
            partial.rename(out)
            fsync_folder(out.parent)
    except OSError as error:
        needs = ""
        if error.errno in NO_ROOM:
            free = shutil.disk_usage(out.parent).free if out.parent.is_dir() else 0
            needs = f" (it needs {size / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free there)"
        raise UserError(
            f"cannot write {out}: {error.strerror or error}{needs}; make room or name another folder"
        ) from error


@contextmanager
def _gone(partial: Path) -> Iterator[None]:
    """Removes a folder before, where a process was killed, and after."""
    try:
        shutil.rmtree(partial, ignore_errors=True)
        yield
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_json(file: Path, value: dict[str, object]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n")
