"""A Llama of transformers as a checkpoint of ours, with its recipe and its tokenizer beside it."""

import importlib.metadata
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from lrtrain.checkpoint.huggingface import llama_source
from lrtrain.checkpoint.huggingface.exported_folder import check_packages
from lrtrain.checkpoint.huggingface.factorized_import import Factorization, Outcome, factorize
from lrtrain.checkpoint.huggingface.gguf_file import GgufFacts
from lrtrain.checkpoint.huggingface.imported import Imported, license_in
from lrtrain.checkpoint.huggingface.llama_fields import llama_fields
from lrtrain.checkpoint.huggingface.llama_source import Source, SourceTokenizer
from lrtrain.checkpoint.huggingface.llama_weights import compare, take_weights
from lrtrain.config.import_files import Target, find_target, write_import
from lrtrain.config.import_recipe import decoder_config
from lrtrain.config.trained_model import build_decoder
from lrtrain.data.tokenizer import end_of_text, vocabulary_size
from lrtrain.nn import Decoder
from lrtrain.runtime.allocator import give_back_freed_memory
from lrtrain.runtime.errors import UserError

QUIET = 10.0
"""Seconds without a word while matrices are decomposed."""


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
    card = "" if gguf is not None and source.local else llama_source.card(source)
    origin = _origin(source, stated, gguf, config, tokenizer, card)
    for name, line in _what_it_is(origin, fields, tokenizer):
        say(f"{name:<15} {line}")
    if origin.license is None and card is None:
        say(f"{'':<15} its card, which may state a license, cannot be read without the hub: export takes --license")
    decoder, difference, stops = _dense_decoder(source, config, fields, tokenizer)
    origin = replace(origin, stops=stops)
    say(f"{'logits':<15} {difference}")
    numbers = sum(p.numel() for p in decoder.parameters())
    outcome = Outcome()
    if asked:
        outcome = factorize(decoder, asked, _progress(len(decoder.blocks)))
        origin = replace(origin, factorized=_in_words(asked, outcome))
        say(
            "\nshare of each projection's energy (Σσ²) that is lost, by layer"
            + (", after its rank" if asked.energy else "")
        )
        say(outcome.as_table(asked.energy is not None) + "\n")
        say(f"{'factorized':<15} {origin.factorized}")
        say(f"{'numbers':<15} {numbers:,} → {sum(p.numel() for p in decoder.parameters()):,}")
    made = decoder_config(fields, asked, outcome)
    write_import(decoder, made, tokenizer.ours, origin, target)
    for name, file in zip(("wrote", "recipe", "tokenizer"), target.files(), strict=True):
        say(f"{name:<15} {file}")


def check_import(out: str, asked: Factorization) -> Target:
    """Refuses what can be refused before anything is read: a missing package, a rank out of range, a target that is
    there; returns the files to write.
    """
    check_packages("import")
    asked.check()
    return find_target(out)


def _progress(blocks: int) -> Callable[[str], None]:
    """Says on stderr, every ten seconds at most, at which projection a factorization is."""
    last = time.monotonic()

    def begin(name: str) -> None:
        nonlocal last
        if time.monotonic() - last > QUIET:
            last = time.monotonic()
            print(f"import: factorizing {name} of {blocks} blocks …", file=sys.stderr, flush=True)

    return begin


def _dense_decoder(
    source: Source, config: Any, fields: dict[str, Any], tokenizer: SourceTokenizer
) -> tuple[Decoder, str, list[int]]:
    """Our decoder with the source's weights, how far its logits are from transformers', and where its answers end."""
    model = llama_source.read_model(source, config)
    with torch.device("meta"):
        decoder = build_decoder(decoder_config(fields, Factorization(), Outcome()))
    take_weights(model, decoder, source.text)
    difference = compare(model, decoder, tokenizer.ours, source.text)
    ends = model.generation_config.eos_token_id
    del model
    give_back_freed_memory()
    return decoder, difference, ends if isinstance(ends, list) else [] if ends is None else [ends]


def _check_vocabulary(text: str, tokenizer: SourceTokenizer, rows: int) -> None:
    if (size := vocabulary_size(tokenizer.ours)) > rows:
        raise UserError(f"import {text}: the tokenizer has {size:,} tokens and vocab_size is {rows:,}: they do not fit")


def _origin(
    source: Source,
    stated: dict[str, Any],
    gguf: GgufFacts | None,
    config: Any,
    tokenizer: SourceTokenizer,
    card: str | None,
) -> Imported:
    stored = gguf.types if gguf is not None else str(stated.get("dtype") or stated.get("torch_dtype") or "unknown")
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return Imported(
        source=source.name,
        family=config.model_type,
        stored=stored,
        context=config.max_position_embeddings,
        license=(gguf and gguf.license) or license_in(card or ""),
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
        yield "", f"the model ends its own answers with {theirs}, at which lrtrain generate stops, too"
    if tokenizer.begins:
        begins = f"the model began every text with {tokenizer.begins}, as generate does"
        yield "", f"{begins}; lrtrain's data begin after {end}"


def _in_words(asked: Factorization, outcome: Outcome) -> str:
    ranks = [rank for rank in outcome.ranks.values() if rank is not None]
    span = f"{min(ranks)}" if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"
    kind = asked.kind.replace("_", "-")
    return (
        f"{len(ranks)} of {len(outcome.ranks)} projections of {' and '.join(asked.parts)} {kind}, rank {span}, "
        f"{outcome.total:.2%} of their energy lost"
    )
