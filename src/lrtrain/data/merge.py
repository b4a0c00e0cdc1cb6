"""Shares to one data set: the files that one machine would have made, chunk for chunk."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lrtrain.data import preparation
from lrtrain.data.encoder import Encoder
from lrtrain.data.listing import list_sources
from lrtrain.data.manifest import MANIFEST, PARTS, SPLITS, Manifest, difference
from lrtrain.data.messages import some
from lrtrain.data.origin import origin
from lrtrain.data.preparation import finish, write_documents
from lrtrain.data.shards import ShardWriter, read_chunk, token_dtype
from lrtrain.data.shares import PLAN, Plan, Share, plan_hash, ranges, share_folder
from lrtrain.data.spec import PrepareSpec
from lrtrain.data.tokenizer import load_tokenizer, vocabulary_size
from lrtrain.data.unfinished import TOKENIZER, Progress, alone_in, clear, disk_errors, refuse_foreign
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import write_atomically
from lrtrain.runtime.long_work import LongWork

COPYING = -1
"""`Progress.part` of a merge that copies tokens: the writers tell how far it is."""


class Taken(NamedTuple):
    """A share's folder, its shards, and how much of each split goes into the data set: documents, bytes, tokens."""

    folder: Path
    share: Share
    counts: dict[str, tuple[int, int, int]]


def merge(path: str, given: Mapping[str, Any], workers: int | None = None) -> Manifest:
    """Make the data set of the shares in the local folder `path`, byte for byte as `prepare` on one machine.

    An interrupted merge goes on; the shares are deleted when the data set is whole, and until then take as much room
    again. `given` is what of the request is stated again, to be compared. Raises UserError if a share is missing or
    damaged, the request is another, the sources have changed, or the disk is full.
    """
    if "://" in path:
        raise UserError(f"cannot merge in {path}: parts lie in a local folder, and the data set is made there")
    folder = Path(path).expanduser()
    if (folder / MANIFEST).exists():
        print(f"{folder} is whole already", flush=True)
    else:
        if not (folder / PARTS / PLAN).exists():
            raise UserError(f"{folder} holds no parts: run lrtrain prepare --part I --of N --out {folder} … for each I")
        with disk_errors(folder), alone_in(folder):
            if not (folder / MANIFEST).exists():
                _merge(folder, given, workers)
    manifest = Manifest.load(str(folder))
    if other := difference(vars(manifest), given):
        raise UserError(f"{folder} holds a data set of another request, {other}: name another folder or delete it")
    with disk_errors(folder):
        if (folder / PARTS).exists():
            shutil.rmtree(folder / PARTS)
    return manifest


def _merge(folder: Path, given: Mapping[str, Any], workers: int | None) -> None:
    plan = Plan.load(folder)
    spec = PrepareSpec(**plan.request, workers=workers)
    spec.check()
    parts = list_sources(spec.source, spec.formats, folder).parts
    files = origin(parts, spec.formats)
    plan.check(folder, plan.of, {**plan.request, **given}, files)
    taken, place = _taken(spec, plan, folder, ranges([part.size for part in parts], plan.of))
    progress = Progress(spec.request(), files, part=COPYING, plan=plan_hash(folder))
    saved = Progress.load(folder)
    if saved is None:
        refuse_foreign(folder)
    elif saved.writers and saved.plan == progress.plan:
        progress = saved
    else:
        clear(folder)
    _announce(folder, plan, taken, progress)
    progress.save(folder)  # from here on the folder is marked as ours
    write_atomically(folder / TOKENIZER, (folder / PARTS / TOKENIZER).read_bytes())
    tokenizer = load_tokenizer(str(folder / TOKENIZER))
    dtype = token_dtype(vocabulary_size(tokenizer))
    writers = {name: ShardWriter(folder / name, dtype) for name in SPLITS}
    for name, state in progress.writers.items():
        writers[name].restore(state)
    if progress.part == COPYING:
        for name in SPLITS:
            _copy(name, taken, writers, progress, folder)
        if place:  # from there on as one machine
            progress.part, progress.position = place
            _save(progress, writers, folder)
    if progress.part != COPYING:
        write_documents(spec, parts, Encoder(tokenizer, dtype), folder, progress, writers)
    finish(spec, folder, writers, files)


def _taken(
    spec: PrepareSpec, plan: Plan, folder: Path, files_of: list[tuple[int, int]]
) -> tuple[list[Taken], tuple[int, int] | None]:
    """What there is of each share and, where the token limit ends it, the place to go on from in the sources."""
    folders = [share_folder(folder, number, plan.of) for number in range(plan.of)]
    shares = [Share.load(at) for at in folders]
    if missing := [str(number) for number, share in enumerate(shares) if share is None]:
        raise UserError(
            f"{len(missing)} of the {plan.of} parts of {folder} are missing or not finished: run lrtrain prepare "
            f"--part I --of {plan.of} … again for I = {some(missing)}"
        )
    wanted, found, room = plan_hash(folder), [], spec.max_tokens
    for at, share, (begin, _) in zip(folders, shares, files_of, strict=True):
        assert share is not None
        if share.plan != wanted:
            raise UserError(f"{at} is not of this preparation: delete it and run lrtrain prepare --part … again")
        if room is None or (share.whole and share.train.tokens <= room):
            found.append(Taken(at, share, {name: share.split(name).counts for name in SPLITS}))
            room = None if room is None else room - share.train.tokens
            continue
        marks = [[begin, 0, (0, 0, 0), (0, 0, 0)], *share.marks]
        part, position, *counts = next(mark for mark in reversed(marks) if mark[2][2] <= room)
        found.append(Taken(at, share, dict(zip(SPLITS, counts, strict=True))))
        return found, (part, position)
    return found, None


def _copy(name: str, taken: list[Taken], writers: dict[str, ShardWriter], progress: Progress, folder: Path) -> None:
    """Append the tokens of one split, but for those that its writer has from before an interruption."""
    writer = writers[name]
    passed, saved = writer.tokens, time.monotonic()
    with LongWork(f"Copying {name}", sum(one.counts[name][2] for one in taken), "tokens") as work:
        work.began_at(writer.tokens)
        for one in taken:
            left = one.counts[name][2]
            for chunk in one.share.split(name).chunks:
                count = min(chunk.tokens, left)
                left -= count
                if passed >= count:
                    passed -= count
                    continue
                try:
                    writer.extend(read_chunk(one.folder / name, chunk, writer.dtype)[passed:count])
                except UserError as error:
                    raise UserError(
                        f"{error}: delete {one.folder} and run lrtrain prepare --part … for it again"
                    ) from error
                passed = 0
                work.update(writer.tokens)
                if time.monotonic() - saved >= preparation.SAVE_SECONDS:
                    _save(progress, writers, folder)
                    saved = time.monotonic()
    writer.documents, writer.bytes = (sum(one.counts[name][i] for one in taken) for i in (0, 1))


def _save(progress: Progress, writers: dict[str, ShardWriter], folder: Path) -> None:
    progress.writers = {name: writer.state() for name, writer in writers.items()}
    progress.save(folder)


def _announce(folder: Path, plan: Plan, taken: list[Taken], progress: Progress) -> None:
    """Say what is merged. Raises UserError where the disk has no room for it beside the shares."""
    chunks = [chunk for one in taken for name in SPLITS for chunk in one.share.split(name).chunks]
    there = [file for name in SPLITS for file in (folder / name).glob("*.bin")]
    room = sum(chunk.bytes for chunk in chunks) - sum(file.stat().st_size for file in there)
    free = shutil.disk_usage(folder).free
    if room > free:
        raise UserError(
            f"merging needs {room / 1e9:,.1f} GB more in {folder}, where {free / 1e9:,.1f} GB are free (the parts are "
            "deleted when the data set is whole): free some"
        )
    begun = "Going on with" if progress.writers else "Merging"
    print(f"{begun} {folder}: {plan.of} parts, {room / 1e6:,.1f} MB to write beside them", flush=True)
