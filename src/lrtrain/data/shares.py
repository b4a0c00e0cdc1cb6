"""What each of N machines makes of the sources (`--part I --of N`), for `data/merge.py` to put together.

A share is a run of the sources' files in the order of reading, about equally many bytes of them. All shares agree on
a plan (`parts/plan.json`) and a tokenizer, which the first to come writes.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lrtrain.data.encoder import Encoder
from lrtrain.data.listing import Part, list_sources
from lrtrain.data.manifest import MANIFEST, PARTS, PROGRESS, SPLITS, Chunk, Split, difference
from lrtrain.data.origin import Origin, changes, origin, tokenizer_changes
from lrtrain.data.preparation import announcement, existing, write_documents
from lrtrain.data.shards import ShardWriter, token_dtype
from lrtrain.data.spec import PrepareSpec
from lrtrain.data.tokenizer import load_tokenizer, vocabulary_size
from lrtrain.data.tokenizer_sample import make_tokenizer
from lrtrain.data.unfinished import TOKENIZER, Progress, alone_in, clear, disk_errors, refuse_foreign
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import unfinished, write_atomically

PLAN, SHARE = "plan.json", "part.json"


@dataclass(frozen=True)
class Plan:
    """What all shares have in common: how many there are, the request, the files that it names, and the tokenizer."""

    of: int
    request: dict[str, Any]
    files: Origin
    tokenizer_sha256: str

    @classmethod
    def load(cls, folder: Path) -> "Plan":
        """The plan of the data set `folder`. Raises UserError if it is damaged."""
        return cls(**_read(folder / PARTS / PLAN, folder / PARTS))

    def check(self, folder: Path, of: int, request: dict[str, Any], files: Origin) -> None:
        """Raise UserError if a request, what it names today, or the number of its parts is not that of the plan."""
        anew = f"name another folder, or delete {folder / PARTS}"
        if of != self.of:
            raise UserError(f"{folder} is made in {self.of} parts, not in {of}: give --of {self.of}, {anew}")
        if other := difference(self.request, request):
            raise UserError(f"{folder} holds parts of another request, {other}: give the same to all, {anew}")
        tokenizer = folder / PARTS / TOKENIZER
        if hashlib.sha256(tokenizer.read_bytes()).hexdigest() != self.tokenizer_sha256:
            raise UserError(f"{tokenizer} is not the tokenizer that the parts were begun with: {anew}")
        if changed := tokenizer_changes(request["tokenizer"], tokenizer) or changes(self.files, files):
            raise UserError(
                f"the sources have changed since the first part of {folder} was begun ({changed}): delete "
                f"{folder / PARTS} and prepare all parts again"
            )


@dataclass(frozen=True)
class Share:
    """A finished share: which one it is, what it was made from, and its shards.

    `whole` is false where the token limit ended it; `marks` are those of its `Progress`.
    """

    number: int
    plan: str
    train: Split
    val: Split
    whole: bool
    marks: list[list[Any]] = field(default_factory=list)

    def split(self, name: str) -> Split:
        split: Split = getattr(self, name)
        return split

    @classmethod
    def load(cls, folder: Path) -> "Share | None":
        """The share in `folder`; None if there is none or it is not finished. Raises UserError if it is damaged."""
        if not (folder / SHARE).exists():
            return None
        content = _read(folder / SHARE, folder)
        for name in SPLITS:
            content[name]["chunks"] = [Chunk(**chunk) for chunk in content[name]["chunks"]]
            content[name] = Split(**content[name])
        return cls(**content)


def prepare_share(spec: PrepareSpec, path: str, number: int, of: int) -> Share | None:
    """Make share `number` (from 0) of `of` of the data set `spec` in the local folder `path`, or go on with it.

    It lies in `path/parts/` until all are merged. Of two processes that ask for the same share, the second waits.
    Returns None if the data set is merged already. Raises UserError as `prepare` does, and if the other shares are of
    another request, number or version of the sources.
    """
    spec.check()
    if "://" in path:
        raise UserError(f"cannot prepare parts in {path}: name a local folder that all machines share, and merge there")
    if not 0 <= number < of:
        raise UserError(f"--part is {number} and --of {of}: parts are numbered from 0 to {of - 1}")
    folder = Path(path).expanduser()
    if (folder / MANIFEST).exists():
        existing(spec, str(folder))
        print(f"{folder} is merged already: nothing to do", flush=True)
        return None
    with disk_errors(folder):
        listing = list_sources(spec.source, spec.formats, folder)
        files = origin(listing.parts, spec.formats)
        begin, end = ranges([part.size for part in listing.parts], of)[number]
        _check_plan(spec, folder, listing.parts, of, files)
        mine = share_folder(folder, number, of)
        mine.mkdir(exist_ok=True)
        with alone_in(mine):
            share = Share.load(mine)
            if share is not None and share.plan == plan_hash(folder):
                print(f"Part {number} of {of} of {folder} is there", flush=True)
                return share
            own = listing.parts[begin:end]
            progress, going_on = _progress(spec, folder, mine, files, begin)
            line = announcement(spec, own, mine, going_on)
            print("\n".join([line, *(listing.remarks() if number == 0 else [])]), flush=True)
            return _make(spec, folder, mine, number, listing.parts[:end], progress)


def share_folder(folder: Path, number: int, of: int) -> Path:
    return folder / PARTS / f"{number:05d}-of-{of:05d}"


def plan_hash(folder: Path) -> str:
    return hashlib.sha256((folder / PARTS / PLAN).read_bytes()).hexdigest()


def ranges(sizes: Sequence[int], of: int) -> list[tuple[int, int]]:
    """The first file and the one after the last of each share: at least one file, and about equally many bytes.

    Raises:
        UserError: there are fewer files than shares.
    """
    count = len(sizes)
    if count < of:
        raise UserError(f"--of {of}: the sources have {count} files, and a part is one at least: give at most {count}")
    if not sum(sizes):
        sizes = [1] * count
    cuts, cut, before = [0], 0, 0
    for share in range(1, of):
        while cut < count and of * (2 * before + sizes[cut]) < 2 * share * sum(sizes):  # its middle is in this share
            before += sizes[cut]
            cut += 1
        cuts.append(min(max(cut, cuts[-1] + 1), count - of + share))
    return list(zip(cuts, [*cuts[1:], count], strict=True))


def _check_plan(spec: PrepareSpec, folder: Path, parts: list[Part], of: int, files: Origin) -> None:
    """Refuse what is not of the plan that is there; where there is none, make it and the tokenizer."""
    if not (folder / PARTS / PLAN).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with alone_in(folder):
            if not (folder / PARTS / PLAN).exists():
                left = Progress.load(folder)
                if left is None:
                    refuse_foreign(folder)
                elif left.plan:  # of a merge whose parts were deleted
                    clear(folder)
                else:
                    raise UserError(f"{folder} holds an unfinished preparation of one machine: delete it, or finish it")
                made = make_tokenizer(spec, parts).to_str(pretty=True).encode()
                plan = Plan(of, spec.request(), files, hashlib.sha256(made).hexdigest())
                (folder / PARTS).mkdir(exist_ok=True)
                write_atomically(folder / PARTS / TOKENIZER, made)
                write_atomically(folder / PARTS / PLAN, json.dumps(asdict(plan), indent=2).encode())
    Plan.load(folder).check(folder, of, spec.request(), files)


def _progress(spec: PrepareSpec, folder: Path, mine: Path, files: Origin, begin: int) -> tuple[Progress, bool]:
    """How far this share has come, and whether that is anywhere; what is of another plan is dropped."""
    saved, plan = Progress.load(mine), plan_hash(folder)
    if saved is not None and saved.writers and saved.plan == plan:
        return saved, True
    clear(mine)
    (mine / SHARE).unlink(missing_ok=True)
    return Progress(spec.request(), files, part=begin, plan=plan), False


def _make(spec: PrepareSpec, folder: Path, mine: Path, number: int, parts: list[Part], progress: Progress) -> Share:
    tokenizer = load_tokenizer(str(folder / PARTS / TOKENIZER))
    dtype = token_dtype(vocabulary_size(tokenizer))
    writers = {name: ShardWriter(mine / name, dtype) for name in SPLITS}
    for name, state in progress.writers.items():
        writers[name].restore(state)
    whole = write_documents(spec, parts, Encoder(tokenizer, dtype), mine, progress, writers)
    splits = {name: writer.close() for name, writer in writers.items()}
    share = Share(number, plan_hash(folder), **splits, whole=whole, marks=progress.marks)
    write_atomically(mine / SHARE, json.dumps(asdict(share), indent=2).encode())
    for file in (mine / PROGRESS, unfinished(mine / PROGRESS)):
        file.unlink(missing_ok=True)
    return share


def _read(file: Path, folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): delete {folder} and prepare again") from error
    return content
