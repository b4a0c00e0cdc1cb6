"""Runs in a store, `<path>/<name>/<NNNN>/`: their numbers, their whole checkpoints, and how they come to this disk.

A run directory knows its copy by `remote.json`, which names the URL and the claim that lies there as `run.json`: so no
run takes another's place, whatever disk it begins on. Below a copy lie the run's record and `checkpoints/`, as in a run
directory. A checkpoint is one object, or a folder whose `meta.pt` came last. `step-00000500.ckpt.aside` beside one says
that the run went on from an earlier step: it is kept and not counted.
"""

import hashlib
import json
import re
import shutil
import sys
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from lrtrain.checkpoint.directory import FOLDER, step_path
from lrtrain.checkpoint.shard_folder import META
from lrtrain.checkpoint.single_file import PARTIAL
from lrtrain.runtime import stores
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import fsync_folder, write_atomically, writing

CLAIM, LINK, ASIDE = "run.json", "remote.json", ".aside"
METRICS = "metrics.jsonl"
RECORD = ("config.yaml", "tokenizer.json", "mlflow.json", METRICS)
"""What of a run goes with its checkpoints; mlflow.json, which counts the bytes of metrics.jsonl, before that."""

_STEP = re.compile(rf"{FOLDER}/step-(\d{{8,}})\.ckpt(/{re.escape(META)})?")
_OF_A_RUN = re.compile(rf"(.*)/(\d{{4,}})/{FOLDER}/step-(\d{{8,}})\.ckpt")
CACHE = Path("~/.cache/lrtrain/checkpoints")
RECORDS = Path("~/.cache/lrtrain/records")


@dataclass(frozen=True)
class Link:
    """The copy of a run: where it is, and the claim that makes it this run's."""

    url: str
    claim: str


@dataclass(frozen=True)
class RemoteRun:
    """A run of a name in a store: its number, URL, the names of its objects, and its checkpoints, newest first."""

    number: int
    url: str
    names: frozenset[str]
    steps: tuple[int, ...]


def check_path(path: str) -> str:
    """Returns the path of all copies without a slash at its end. Raises UserError unless it is a URL."""
    if not stores.is_remote(path):
        raise UserError(
            f"checkpoints.path is {path}: give the URL of a store, such as s3://bucket/runs; --runs names a folder here"
        )
    return path.rstrip("/")


def runs_at(path: str, name: str) -> dict[int, RemoteRun]:
    """The runs of a name by number."""
    url = stores.joined(path, name)
    found: dict[int, set[str]] = {}
    for entry in stores.stored(url):
        number, _, rest = entry.partition("/")
        if re.fullmatch(r"\d{4,}", number) and rest:
            found.setdefault(int(number), set()).add(rest)
    return {
        number: RemoteRun(number, run_url(path, name, number), frozenset(names), steps_among(names))
        for number, names in found.items()
    }


def run_url(path: str, name: str, number: int) -> str:
    """`<path>/<name>/<NNNN>`."""
    return stores.joined(path, f"{name}/{number:04d}")


def steps_among(names: Iterable[str]) -> tuple[int, ...]:
    """The steps whose checkpoints are there and not set aside, newest first, of the names of a run's objects."""
    names = set(names)
    steps = {int(match[1]) for name in names if (match := _STEP.fullmatch(name))}
    return tuple(sorted((s for s in steps if f"{checkpoint_name(s)}{ASIDE}" not in names), reverse=True))


def checkpoint_name(step: int) -> str:
    """`checkpoints/step-00000500.ckpt`."""
    return step_path(Path(FOLDER), step).as_posix()


def of_a_run(url: str, path: str, name: str) -> tuple[int, int] | None:
    """(number, step) of a checkpoint's URL, if it is of a run of this name under this path."""
    match = _OF_A_RUN.fullmatch(url.rstrip("/"))
    return (int(match[2]), int(match[3])) if match and match[1] == stores.joined(path, name) else None


def claim(url: str) -> Link | None:
    """Takes a place in a store for a new run; None if it is taken already."""
    mine = uuid.uuid4().hex
    return Link(url, mine) if stores.create(stores.joined(url, CLAIM), _as_json({"claim": mine})) else None


def give_up(run_dir: Path) -> None:
    """Gives the place of a run back that never began, and removes its link."""
    file = run_dir / LINK
    if [entry.name for entry in run_dir.iterdir()] == [LINK]:
        url = json.loads(file.read_bytes())["url"]
        file.unlink()
        stores.delete(stores.joined(url, CLAIM))


def link_of(run_dir: Path, path: str) -> Link | None:
    """The copy of a run under a path, as its directory says; None without one there.

    Raises:
        UserError: the file is damaged.
    """
    file = run_dir / LINK
    try:
        link = Link(**json.loads(file.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is damaged: remove it, and the run is copied to a new place") from error
    return link if link.url.startswith(f"{path}/") else None


def write_link(run_dir: Path, link: Link) -> None:
    """Notes the copy in the run directory."""
    with writing(f"cannot write into {run_dir}"):
        write_atomically(run_dir / LINK, _as_json(asdict(link)))


def linked(run_dir: Path, path: str, name: str | None = None) -> Link:
    """The copy of a run, made if there is none: at its own name and number, or the next one that is free.

    Raises:
        UserError: what lies where its copy was is of another run.
    """
    link = link_of(run_dir, path)
    if link is not None:
        held = read_claim(link.url)
        if held is None:
            stores.write(stores.joined(link.url, CLAIM), _as_json({"claim": link.claim}))
        elif held != link.claim:
            raise UserError(
                f"{link.url} is of another run than {run_dir}: remove {run_dir / LINK} to copy to a new place"
            )
        return link
    number = int(run_dir.name) if run_dir.name.isdecimal() else 1
    while (link := claim(run_url(path, name or run_dir.absolute().parent.name, number))) is None:
        number += 1
    write_link(run_dir, link)
    return link


def read_claim(url: str) -> str | None:
    """Whose place a URL is; None where nobody claimed it."""
    try:
        return str(json.loads(stores.read(stores.joined(url, CLAIM)))["claim"])
    except FileNotFoundError:
        return None


def fetch_record(run: RemoteRun, run_dir: Path) -> bool:
    """Brings the record of a run to its directory and returns whether it did: not where the one here goes on from it.

    A record here that went another way stays beside it, as `metrics.jsonl.aside`.
    """
    here = run_dir / METRICS
    there = stores.read(stores.joined(run.url, METRICS)) if METRICS in run.names else b""
    known = here.read_bytes() if here.is_file() else b""
    if known and known.startswith(there):
        return False
    with writing(f"cannot write into {run_dir}"):
        if known and not there.startswith(known):
            aside = here.with_name(METRICS + ASIDE)
            here.replace(aside)
            print(f"{here} went another way than {run.url}: renamed to {aside.name}", file=sys.stderr)
        for name in (name for name in RECORD if name != METRICS and name in run.names):
            write_atomically(run_dir / name, stores.read(stores.joined(run.url, name)))
        if there:
            write_atomically(here, there)
    return bool(there)


def fetch(url: str, to: Path) -> None:
    """Brings a checkpoint, an object or a folder, under a local name; it is there when all of it is on the disk.

    Raises:
        UserError: there is none.
    """
    print(f"downloading {url} …", file=sys.stderr, flush=True)
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        names = stores.stored(url)
        if META not in names:
            stores.download(url, to)
            return
        partial = to.with_name(f"{to.name}{PARTIAL}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name in names:
            stores.download(stores.joined(url, name), partial / name)
    except FileNotFoundError as error:
        raise UserError(
            f"there is no checkpoint {url}: pass another one, or 'last' for the newest whole one"
        ) from error
    partial.rename(to)
    fsync_folder(to.parent)


def cached(url: str) -> Path:
    """A checkpoint of a store as a local file or folder, kept below `~/.cache/lrtrain/checkpoints` until it changes.

    Of a URL that is no checkpoint but a run, or a folder of runs, it is the newest one.
    """
    url = newest_url(url)
    folder, _, name = url.rpartition("/")
    listed = {entry: stored for entry, stored in stores.stored(folder).items() if entry.split("/")[0] == name}
    identity = hashlib.sha256(f"{url} {sorted(listed.items(), key=str)}".encode()).hexdigest()[:16]
    file = CACHE.expanduser() / identity / name
    if not file.exists():
        fetch(url, file)
    return file


def cached_record(url: str) -> Path:
    """The record of a run in a store as a directory below `~/.cache/lrtrain/records`, fetched anew at every call.

    Of a folder of runs it is the one with the newest checkpoint.

    Raises:
        UserError: there is none.
    """
    url = url.rstrip("/")
    names = stores.stored(url)
    if METRICS not in names:
        url = newest_url(url).rpartition(f"/{FOLDER}/")[0]
        names = stores.stored(url)
    if METRICS not in names:
        raise UserError(f"{url} holds no record of a run ({METRICS}): name a run in a store")
    name, number = url.split("/")[-2:]
    directory = RECORDS.expanduser() / hashlib.sha256(url.encode()).hexdigest()[:16] / name / number
    with writing(f"cannot write into {directory}"):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    fetch_record(RemoteRun(0, url, frozenset(names), steps_among(names)), directory)
    return directory


def newest_url(url: str) -> str:
    """The URL of the checkpoint that a URL means: itself, or the newest one of a run or of a folder of runs.

    Raises:
        UserError: there is none.
    """
    url = url.rstrip("/")
    if not url.endswith(".ckpt"):
        names = stores.stored(url)
        wanted = re.compile(rf"(?:(.*)/)?{FOLDER}/step-(\d{{8,}})\.ckpt(?:/{re.escape(META)})?")
        found = [m for name in names if (m := wanted.fullmatch(name)) and f"{_file(m)}{ASIDE}" not in names]
        if not found:
            raise UserError(f"no checkpoint under {url}: name a .ckpt, a run or a folder of runs")
        url = stores.joined(url, _file(max(found, key=lambda m: (m[1] or "", int(m[2])))))
    return url


def _file(match: re.Match[str]) -> str:
    return match[0].removesuffix(f"/{META}")


def _as_json(value: object) -> bytes:
    return (json.dumps(value) + "\n").encode()
