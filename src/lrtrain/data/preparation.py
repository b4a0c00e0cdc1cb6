"""From sources to a data set: tokenizer, shards of both splits, and last the manifest that says it is whole."""

import hashlib
import os
import resource
import time
from contextlib import closing
from itertools import accumulate
from pathlib import Path

import numpy as np

from lrtrain.data.encode import encode_batches, held_out, read_batches
from lrtrain.data.encoder import Encoder
from lrtrain.data.installed import SITE_PACKAGES
from lrtrain.data.listing import Part, list_sources
from lrtrain.data.manifest import MANIFEST, PARTS, PROGRESS, SPLITS, Manifest, difference
from lrtrain.data.messages import some
from lrtrain.data.origin import Origin, changes, origin, tokenizer_changes
from lrtrain.data.shards import ShardWriter, token_dtype
from lrtrain.data.spec import PrepareSpec
from lrtrain.data.tokenizer import end_of_text, load_tokenizer, vocabulary_size
from lrtrain.data.tokenizer_sample import make_tokenizer
from lrtrain.data.unfinished import TOKENIZER, Progress, alone_in, clear, disk_errors, refuse_foreign
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import unfinished, write_atomically
from lrtrain.runtime.liveness import beat
from lrtrain.runtime.long_work import LongWork
from lrtrain.runtime.stores import is_remote

SAMPLED_CHARACTERS = 1000  # of a document that goes through the tokenizer and back, one a batch
SAVE_SECONDS = 10.0
MOST_FED = 16  # processes: about as many as one that reads can feed


def prepare(spec: PrepareSpec, path: str, ask_stores: bool = True) -> Manifest:
    """Make the data set of `spec` in the folder or at the URL `path`, or go on with one that was interrupted there.

    Writes `tokenizer.json`, `train/`, `val/` and last `manifest.json`. A data set of the same request is returned as
    it is if the files that the request names are those it was made from; without `ask_stores` URLs are not compared,
    and neither are installed packages, which change while a study runs, and what is not on this machine. The result
    depends on the request and the sources alone, not on interruptions or `workers`; two processes may ask at once, the
    second waits. Raises UserError for whatever is wrong with the request, the sources, the tokenizer, the folder or the
    disk.
    """
    spec.check()
    if is_remote(path):
        from lrtrain.data.remote_preparation import prepare_remote  # which prepares here first

        return prepare_remote(spec, path.rstrip("/"), ask_stores)
    folder = Path(path).expanduser()
    if not (folder / MANIFEST).exists():
        if (folder / PARTS).exists():
            raise UserError(
                f"{folder} holds parts of a preparation: lrtrain prepare --merge --out {folder} makes one data set of "
                f"them; to begin anew delete {folder / PARTS}"
            )
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with alone_in(folder):
                if not (folder / MANIFEST).exists():
                    return _prepare(spec, folder)
    manifest = existing(spec, str(folder))
    refuse_stale(spec, manifest, folder, ask_stores)
    return manifest


def existing(spec: PrepareSpec, path: str) -> Manifest:
    """The manifest in `path`. Raises UserError if it was made for another request than `spec`."""
    manifest = Manifest.load(path)
    if other := difference(vars(manifest), spec.request()):
        raise UserError(f"{path} holds a data set of another request, {other}: name another folder or delete it")
    return manifest


def refuse_stale(
    spec: PrepareSpec, manifest: Manifest, folder: Path, ask_stores: bool, where: str | None = None
) -> None:
    """Raise UserError if the request names other files, or another tokenizer, than when the data set was made.

    `folder` has its tokenizer; `where` is how it is called if not by that.
    """
    where = where or str(folder)
    source = [entry for entry in spec.source if ask_stores or not _passed_over(entry)]
    made = [file for file in manifest.files if ask_stores or not _passed_over(file[0])]
    try:
        changed = tokenizer_changes(spec.tokenizer, folder / TOKENIZER)
        if source and not changed:
            changed = changes(made, origin(list_sources(source, spec.formats, folder).parts, spec.formats))
    except UserError as error:
        if ask_stores:
            raise
        print(f"{where} is taken as it is, without comparing it with its sources: {error}", flush=True)
        return
    if changed:
        raise UserError(
            f"{where} was made from other sources: {changed}; delete it to prepare it again, name another folder, or "
            "train on it as it is with --data.prepare null"
        )


def _passed_over(name: str) -> bool:
    """Whether a source, or what it named when the data set was made, is none that a fit compares."""
    return "://" in name or name.partition(": ")[0] == SITE_PACKAGES


def _prepare(spec: PrepareSpec, folder: Path) -> Manifest:
    listing = list_sources(spec.source, spec.formats, folder)
    parts = listing.parts
    files = origin(parts, spec.formats)
    progress = Progress(spec.request(), files)
    saved = Progress.load(folder)
    # What is left of a merge whose parts were deleted is nothing to go on with.
    going_on = saved is not None and bool(saved.writers) and not saved.plan
    if saved is None:
        refuse_foreign(folder)
    elif going_on:
        saved.check(folder, progress.request, progress.files)
        progress = saved
    else:
        clear(folder)
    print("\n".join([announcement(spec, parts, folder, going_on), *listing.remarks()]), flush=True)
    if not going_on:
        made = make_tokenizer(spec, parts)
        progress.save(folder)  # from here on the folder is marked as ours
        write_atomically(folder / TOKENIZER, made.to_str(pretty=True).encode())
    tokenizer = load_tokenizer(str(folder / TOKENIZER))
    dtype = token_dtype(vocabulary_size(tokenizer))
    writers = {name: ShardWriter(folder / name, dtype) for name in SPLITS}
    for name, state in progress.writers.items():
        writers[name].restore(state)
    write_documents(spec, parts, Encoder(tokenizer, dtype), folder, progress, writers)
    return finish(spec, folder, writers, files)


def finish(spec: PrepareSpec, folder: Path, writers: dict[str, ShardWriter], files: Origin) -> Manifest:
    """Close the writers and write the manifest. Raises UserError, and clears the folder, if a split has no document."""
    try:
        _refuse_empty(spec, writers)
    except UserError:
        clear(folder)
        raise
    tokenizer = load_tokenizer(str(folder / TOKENIZER))
    manifest = Manifest(
        **spec.request(),
        tokenizer_sha256=hashlib.sha256((folder / TOKENIZER).read_bytes()).hexdigest(),
        vocab_size=vocabulary_size(tokenizer),
        eot_id=end_of_text(tokenizer),
        dtype=writers["train"].dtype.name,
        train=writers["train"].close(),
        val=writers["val"].close(),
        files=files,
    )
    manifest.save(folder)
    for file in (folder / PROGRESS, unfinished(folder / PROGRESS)):
        file.unlink(missing_ok=True)
    return manifest


def write_documents(
    spec: PrepareSpec,
    parts: list[Part],
    encoder: Encoder,
    folder: Path,
    progress: Progress,
    writers: dict[str, ShardWriter],
) -> bool:
    """Append every document from where `progress` stands, save the progress every few seconds, and say how fast it was.

    Returns whether that was all, not the token limit.
    """
    sizes_before = [*accumulate((part.size for part in parts), initial=0)]
    begun, used, done = time.monotonic(), _processor_seconds(), sum(writer.tokens for writer in writers.values())
    batches = read_batches(parts, spec.text_column, progress.part, progress.position)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    encoded = encode_batches(batches, encoder, min(cores, spec.workers or MOST_FED))
    saved = time.monotonic()
    changed: list[str | None] = []
    whole = True
    with closing(encoded), LongWork("Tokenizing", spec.max_tokens or sizes_before[-1]) as work:
        work.began_at(_completed(spec, sizes_before, progress.part, 0, writers))
        for batch, tokens in encoded:
            changed.append(encoder.changed(batch.texts[0][:SAMPLED_CHARACTERS]))
            if not _append(spec, batch.texts, tokens, encoder, writers):
                whole = False
                break
            beat()
            progress.part, progress.position = batch.part, batch.position
            written = sum(writer.tokens for writer in writers.values())
            rate = (written - done) / max(time.monotonic() - begun, 1e-9)
            note = f"{writers['train'].tokens:,} tokens, {rate:,.0f} a second"
            work.update(_completed(spec, sizes_before, batch.part, batch.offset, writers), note)
            if time.monotonic() - saved >= SAVE_SECONDS:
                progress.writers = {name: writer.state() for name, writer in writers.items()}
                if spec.max_tokens:
                    progress.marks.append([batch.part, batch.position, *(writers[name].counts() for name in SPLITS)])
                progress.save(folder)
                saved = time.monotonic()
    tokens_made = sum(writer.tokens for writer in writers.values()) - done
    per_second, per_core = tokens_made / (time.monotonic() - begun), tokens_made / (_processor_seconds() - used)
    print(f"{tokens_made:,} tokens, {per_second:,.0f} a second: {per_core:,.0f} a second and core (processor time)")
    if other := [sample for sample in changed if sample]:
        print(
            f"The tokenizer gives back another text for {len(other):,} of {len(changed):,} sampled documents ("
            f"{other[0]}): bits per byte counts the bytes of the text as it was"
        )
    return whole


def _completed(
    spec: PrepareSpec, sizes_before: list[int], part: int, offset: int, writers: dict[str, ShardWriter]
) -> int:
    """How much is done, in tokens where these are limited, else in bytes of the sources."""
    return writers["train"].tokens if spec.max_tokens else sizes_before[part] + offset


def _processor_seconds() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def _append(
    spec: PrepareSpec, texts: list[str], encoded: list[np.ndarray], encoder: Encoder, writers: dict[str, ShardWriter]
) -> bool:
    """Append documents to their splits; False when the token limit is reached, at which the last one is cut."""
    for text, tokens in zip(texts, encoded, strict=True):
        split = "val" if held_out(text, spec.val_fraction) else "train"
        if split == "train" and spec.max_tokens and len(tokens) > (room := spec.max_tokens - writers[split].tokens):
            if room > 1:
                writers[split].append(*encoder.beginning(text, room))
            return False
        writers[split].append(tokens, len(text.encode()))
    return True


def _refuse_empty(spec: PrepareSpec, writers: dict[str, ShardWriter]) -> None:
    train, val = writers["train"].documents, writers["val"].documents
    if train == 0 and val == 0 and spec.max_tokens is None:
        raise UserError(f"source {some(spec.source)} holds no text: name files with text in them")
    if spec.max_tokens is not None and 0 in (train, val):
        raise UserError(
            f"max_tokens {spec.max_tokens} is reached with {train} training documents and {val} held out: raise it, or "
            f"val_fraction {spec.val_fraction}"
        )
    if train == 0 or val == 0:
        share, change = (f"every one of {val}", "lower") if val else (f"none of {train}", "raise")
        raise UserError(
            f"{share} documents was held out (val_fraction {spec.val_fraction}): {change} it or give more documents"
        )


def announcement(spec: PrepareSpec, parts: list[Part], folder: Path, going_on: bool) -> str:
    """What is about to be made, in a line."""
    size = sum(part.size for part in parts) / 1e6
    amount = f"{size / 1000:,.1f} GB" if size >= 1000 else f"{size:.1f} MB"
    limit = f", at most {spec.max_tokens:,} training tokens" if spec.max_tokens else ""
    tokenizer = f"tokenizer {spec.tokenizer}" if spec.tokenizer else f"a new tokenizer of {spec.train_vocab_size:,}"
    files = f"{len(parts):,} file{'s' if len(parts) > 1 else ''} ({amount}) of {some(spec.source)}"
    return f"{'Going on with' if going_on else 'Preparing'} {folder}: {files}, {tokenizer}{limit}"
