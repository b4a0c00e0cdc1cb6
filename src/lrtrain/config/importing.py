"""A Llama of transformers as a checkpoint of ours, with its recipe and its tokenizer beside it."""

import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from torch import Tensor

from lrtrain.checkpoint.checkpoint_io import check_architecture
from lrtrain.checkpoint.huggingface import llama_source
from lrtrain.checkpoint.huggingface.exported_folder import check_packages
from lrtrain.checkpoint.huggingface.factorized_import import Factorization, Outcome, factorize
from lrtrain.checkpoint.huggingface.gguf_file import GgufFacts
from lrtrain.checkpoint.huggingface.imported import Imported, license_in
from lrtrain.checkpoint.huggingface.llama_fields import llama_fields
from lrtrain.checkpoint.huggingface.llama_source import Source, SourceTokenizer
from lrtrain.checkpoint.huggingface.llama_weights import compare, take_weights
from lrtrain.checkpoint.single_file import write_whole
from lrtrain.config.import_recipe import decoder_config, recipe
from lrtrain.config.trained_model import build_decoder
from lrtrain.data.tokenizer import end_of_text, vocabulary_size
from lrtrain.nn import Decoder
from lrtrain.runtime.allocator import give_back_freed_memory
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import write_atomically
from lrtrain.runtime.stores import is_remote

SUFFIX = ".ckpt"


@dataclass(frozen=True)
class Target:
    """The files that an import writes."""

    checkpoint: Path
    recipe: Path
    tokenizer: Path

    def files(self) -> tuple[Path, Path, Path]:
        return self.checkpoint, self.recipe, self.tokenizer


def import_model(
    text: str,
    target: Target,
    asked: Factorization,
    tokenizer_file: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Writes the checkpoint, its recipe and its tokenizer, and says what is in them.

    Args:
        text: The source: a folder, a GGUF file, or a name on a hub.
        target: What to write, which is not there yet.
        asked: What to factorize, if anything.
        tokenizer_file: A `tokenizer.json` in place of the source's tokenizer.
        say: Takes each line.

    Raises:
        UserError: it is no Llama, something of it cannot be read or written, or our logits are not transformers'.
    """
    source = llama_source.find_source(text)
    stated, gguf = llama_source.stated_config(source)
    config, fields = llama_fields(text, stated)
    tokenizer = llama_source.read_tokenizer(source, tokenizer_file)
    _check_vocabulary(text, tokenizer, fields["vocab_size"])
    origin = _origin(source, stated, gguf, config, tokenizer)
    for name, line in _what_it_is(origin, fields, tokenizer):
        say(f"{name:<15} {line}")
    decoder, difference = _dense_decoder(source, config, fields, tokenizer)
    say(f"{'logits':<15} {difference}")
    numbers = sum(p.numel() for p in decoder.parameters())
    outcome = Outcome()
    if asked:
        outcome = factorize(decoder, asked)
        origin = replace(origin, factorized=_in_words(asked, outcome))
        say(
            "\nshare of each projection's energy (Σσ²) that is lost, by layer"
            + (", after its rank" if asked.energy else "")
        )
        say(outcome.as_table(asked.energy is not None) + "\n")
        say(f"{'factorized':<15} {origin.factorized}")
        say(f"{'numbers':<15} {numbers:,} → {sum(p.numel() for p in decoder.parameters()):,}")
    made = decoder_config(fields, asked, outcome)
    _write(decoder, made, tokenizer, origin, target)
    for name, file in zip(("wrote", "recipe", "tokenizer"), target.files(), strict=True):
        say(f"{name:<15} {file}")


def check_import(out: str, asked: Factorization) -> Target:
    """What can be refused before anything is read: a missing package, a target that is there, a rank out of range.

    Returns:
        The files to write, by their absolute paths.
    """
    check_packages("import")
    asked.check()
    if is_remote(out):
        raise UserError(f"--out {out}: name a file of this machine; it can be copied to a store")
    path = Path(out).expanduser().resolve()
    if path.suffix != SUFFIX:
        raise UserError(f"--out {out}: name a file that ends in {SUFFIX}; the recipe and the tokenizer go beside it")
    target = Target(path, path.with_suffix(".yaml"), path.with_suffix(".tokenizer.json"))
    for file in target.files():
        if file.exists():
            raise UserError(f"--out {out}: {file} exists already; name a new file")
    return target


def _dense_decoder(
    source: Source, config: Any, fields: dict[str, Any], tokenizer: SourceTokenizer
) -> tuple[Decoder, str]:
    """Our decoder with the source's weights, and how far its logits are from transformers'."""
    model = llama_source.read_model(source, config)
    with torch.device("meta"):
        decoder = build_decoder(decoder_config(fields, Factorization(), Outcome()))
    take_weights(model, decoder, source.text)
    difference = compare(model, decoder, tokenizer.ours, source.text)
    del model
    give_back_freed_memory()
    return decoder, difference


def _check_vocabulary(text: str, tokenizer: SourceTokenizer, rows: int) -> None:
    if (size := vocabulary_size(tokenizer.ours)) > rows:
        raise UserError(f"import {text}: the tokenizer has {size:,} tokens and vocab_size is {rows:,}: they do not fit")


def _origin(
    source: Source, stated: dict[str, Any], gguf: GgufFacts | None, config: Any, tokenizer: SourceTokenizer
) -> Imported:
    license_, stored = None, str(stated.get("dtype") or stated.get("torch_dtype") or "unknown")
    if gguf is not None:
        license_, stored = gguf.license, gguf.types
    else:
        license_ = license_in(llama_source.card(source))
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return Imported(
        source=source.name,
        family=config.model_type,
        stored=stored,
        context=config.max_position_embeddings,
        license=license_,
        ends={name: getattr(config, name, None) for name in names},
        special=tokenizer.special,
        chat_template=tokenizer.chat_template,
        versions={name: importlib.metadata.version(name) for name in ("lrtrain", "transformers", "torch")},
    )


def _what_it_is(origin: Imported, fields: dict[str, Any], tokenizer: SourceTokenizer) -> Iterator[tuple[str, str]]:
    yield "source", f"{origin.source}   {origin.family}   license {origin.license or 'not stated'}"
    kv_heads = f" ({fields['kv_heads']} key-value)" if fields["kv_heads"] != fields["heads"] else ""
    scaling = fields["rope_scaling"]
    tied = "   tied embeddings" if fields["tie_embeddings"] else ""
    yield (
        "model",
        f"width {fields['width']}   {fields['depth']} blocks   {fields['heads']} heads{kv_heads}   "
        f"RoPE base {fields['rope_base']:g}{f', {scaling}' if scaling else ''}   ε {fields['norm_eps']:g}{tied}   "
        f"context {origin.context:,}",
    )
    yield "weights", f"{origin.stored} → float32, in which lrtrain keeps all weights"
    ours = tokenizer.ours
    end = ours.id_to_token(end_of_text(ours))
    yield "tokenizer", f"{vocabulary_size(ours):,} tokens   {end} ends a document"
    if (theirs := tokenizer.special.get("eos_token")) and theirs != end:
        yield "", f"the model ends its own answers with {theirs}: lrtrain's data and generation use {end}"
    if tokenizer.begins:
        yield "", f"the model began every text with {tokenizer.begins}: lrtrain's data and generation begin with {end}"


def _in_words(asked: Factorization, outcome: Outcome) -> str:
    ranks = [rank for rank in outcome.ranks.values() if rank is not None]
    span = f"{min(ranks)}" if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"
    kind = asked.kind.replace("_", "-")
    return (
        f"{len(ranks)} of {len(outcome.ranks)} projections of {' and '.join(asked.parts)} {kind}, rank {span}, "
        f"{outcome.total:.2%} of their energy lost"
    )


def _write(
    decoder: Decoder, made: dict[str, Any], tokenizer: SourceTokenizer, origin: Imported, target: Target
) -> None:
    state: dict[str, Tensor] = {f"decoder.{name}": weight.detach() for name, weight in decoder.state_dict().items()}
    with torch.device("meta"):
        again = torch.nn.ModuleDict({"decoder": build_decoder(made)})
    check_architecture({"state_dict": state}, again, target.checkpoint)
    name, tokens = target.checkpoint.stem, target.tokenizer
    texts = [recipe(name, origin.source, made, origin.context, tokens, begin) for begin in (None, target.checkpoint)]
    yaml.safe_load(texts[0])
    own = {
        "version": importlib.metadata.version("lrtrain"),
        "config": texts[0],
        "tokenizer": tokenizer.ours.to_str(),
        "rng": [],
        "validation_due": False,
        "imported": origin.record(),
    }
    checkpoint = {
        "state_dict": state,
        "pytorch-lightning_version": lightning.__version__,
        "epoch": 0,
        "global_step": 0,
        "callbacks": {},
        "lrtrain": own,
    }
    with _all_or_none(target):
        write_whole(checkpoint, target.checkpoint)
        write_atomically(tokens, tokenizer.ours.to_str(pretty=True).encode())
        write_atomically(target.recipe, texts[1].encode())


@contextmanager
def _all_or_none(target: Target) -> Iterator[None]:
    """Removes what was written where the rest could not be."""
    try:
        yield
    except BaseException as error:
        for file in target.files():
            with suppress(OSError):
                file.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError):
            why = cause.strerror or str(cause)
            raise UserError(f"cannot write {target.checkpoint}: {why}; make room or name another place") from error
        raise
