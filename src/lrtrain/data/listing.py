"""What files a source names: one rule for a name, a folder and a glob, and what it leaves out."""

import glob
import os
import re
import stat
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from lrtrain.data.formats import Code, DocumentFormat, Unknown
from lrtrain.data.installed import SITE_PACKAGES, TESTS, installed_files
from lrtrain.data.known_formats import formats_by_suffix
from lrtrain.data.messages import shown, some, unreadable
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.stores import register_s3

COMPRESSIONS = {".gz": "gzip", ".dz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
STDLIB_LEFT_OUT = {*TESTS, "site-packages", "dist-packages"}
VERSION_KEYS = ("ETag", "etag", "blob_id", "LastModified", "mtime", "updated", "last_modified", "created")
NO_FORMAT, HIDDEN, TWICE, OWN = "of unknown suffix", "hidden", "reached twice", "of the data set itself"


@dataclass(frozen=True)
class Part:
    """One file of a source.

    `compression` is None or one of `COMPRESSIONS`; `size` in bytes, 0 where nobody tells it; `version` is its time of
    change (nanoseconds), or what a store has in its place, or empty; `package` is the installed one that it is of.
    """

    url: str
    format: type[DocumentFormat]
    compression: str | None
    size: int
    version: str = ""
    package: str = ""


@dataclass
class Listing:
    """The files of a source in the order of reading, and by reason the names of what was left out."""

    parts: list[Part] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, reason: str, name: str) -> None:
        self.left_out.setdefault(reason, []).append(name)

    def remarks(self) -> list[str]:
        """Lines on what was left out, and on files that are taken for text."""
        unknown = [part.url for part in self.parts if part.format is Unknown]
        reasons = [f"{len(names):,} {reason} ({some(names)})" for reason, names in self.left_out.items()]
        taken = f"Read as text, whatever the suffix: {some(unknown)}"
        return [*([f"Left out: {', '.join(reasons)}"] if reasons else []), *([taken] if unknown else [])]


def list_sources(source: Iterable[str], formats: Iterable[str] = (), out: Path | None = None) -> Listing:
    """Lists the files of `source` in a fixed order: entries as given, sorted by path within one, each file once.

    An entry is `stdlib` (the text of the running Python's standard library), `site-packages` (that of the packages
    installed for it, in an order that mixes them), or a name, local or any fsspec URL. A file that is named is read
    whatever its suffix, as text where no format knows it. A folder stands for its files of a known suffix, at any
    depth; hidden ones and the folder `out` are left out. A glob stands for the names that it matches, as in a shell:
    files and folders, hidden ones only where it spells the dot. Links are followed. `formats` are class paths of
    further formats.

    Raises:
        UserError: an entry names nothing, a link leads nowhere, or something cannot be listed or is no file.
    """
    source, known = [*source], formats_by_suffix([*formats])
    listing = Listing()
    seen: set[Any] = set()
    own = os.path.realpath(out) if out else None
    for entry in source:
        before = len(listing.parts), sum(map(len, listing.left_out.values()))
        for key, part in _found(entry, known, listing, own):
            if key in seen:
                listing.leave_out(TWICE, part.url)
            else:
                seen.add(key)
                listing.parts.append(part)
        if before == (len(listing.parts), sum(map(len, listing.left_out.values()))):
            raise UserError(f"source {shown(entry)} matches no file: correct the path or the glob")
    if not listing.parts:
        left = "; ".join(listing.remarks())
        raise UserError(f"source {some(source)} has no {' '.join(known)} file (or .gz .zst .bz2 .xz of these). {left}")
    return listing


def _found(
    entry: str, known: Mapping[str, type[DocumentFormat]], listing: Listing, own: str | None
) -> Iterable[tuple[Any, Part]]:
    if entry == "stdlib":
        return _stdlib()
    if entry == SITE_PACKAGES:
        return [
            (one.digest, Part(one.path, Code, None, one.size, one.digest, one.package))
            for one in installed_files(listing.leave_out)
        ]
    return _expand(entry, known, listing, own)


def _stdlib() -> Iterator[tuple[Any, Part]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [f for f in root.rglob("*.py") if STDLIB_LEFT_OUT.isdisjoint(f.relative_to(root).parts[:-1])]
    if not files:
        raise UserError(f"source stdlib: no .py files under {root}: give a path to text instead")
    for file in sorted(files):
        key, part = _local(str(file), formats_by_suffix())
        yield key, replace(part, version="")  # Python installed anew has the same text at another time


def _expand(
    entry: str, known: Mapping[str, type[DocumentFormat]], listing: Listing, own: str | None
) -> list[tuple[Any, Part]]:
    """The files of one entry, each with what tells it from others."""
    here = os.path.abspath(os.path.expanduser(entry))
    register_s3()
    try:
        # A name that is here is taken as it is, also where a URL would give a meaning to what it holds.
        fs, path = (None, here) if os.path.lexists(here) else url_to_fs(entry)
        if fs is None or "file" in fs.protocol:
            names = [path] if fs is None or os.path.lexists(path) else _matches(path)
            files = {file for name in names for file in _files(name, known, listing, own)}
            return [_local(file, known) for file in sorted(files)]
        found = _remote(fs, path, known, listing)
    except UserError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise unreadable(entry, error) from error
    first, chained, rest = entry.partition("::")  # zip://*.txt::archive.zip
    tail = chained + rest if "://" in first else ""
    parts = []
    for name, info in sorted(found.items()):
        version = next((str(info[key]) for key in VERSION_KEYS if info.get(key)), "")
        part = _part(fs.unstrip_protocol(name) + tail, _path(name), known, int(info.get("size") or 0), version)
        parts.append((part.url, part))
    return parts


def _matches(pattern: str) -> list[str]:
    """The local names that a glob matches; `**` stands for the folders at any depth, and alone for what is in them."""
    above, *below = re.split(r"/\*\*(?=/|$)", pattern, maxsplit=1)
    if not below or not below[0].strip("/"):
        return glob.glob(above)
    folders = [root for name in glob.glob(above) for root, _, _, again in _walk(name) if not again]
    return [match for folder in folders for match in _matches(glob.escape(folder) + below[0])]


def _files(name: str, known: Mapping[str, type[DocumentFormat]], listing: Listing, own: str | None) -> Iterator[str]:
    """The local file `name`, or what a local folder of that name stands for."""
    if not os.path.isdir(name):
        yield name
        return
    for root, folders, files, again in _walk(name):
        if again or os.path.realpath(root) == own:
            listing.leave_out(TWICE if again else OWN, f"{root}/")
            folders.clear()
            continue
        for hidden in (folder for folder in folders if folder.startswith(".")):
            listing.leave_out(HIDDEN, f"{root}/{hidden}/")
        for file in files:
            if reason := _reason(file, known):
                listing.leave_out(reason, f"{root}/{file}")
            else:
                yield f"{root}/{file}"


def _walk(top: str) -> Iterator[tuple[str, list[str], list[str], bool]]:
    """Each folder from `top` downwards through links, not below hidden ones: its path, its folders (which may be
    cleared), its files, and whether it was there before under another name: then nothing below it follows.
    """
    entered: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        raise error

    for root, folders, files in os.walk(top.rstrip("/") or "/", onerror=refuse, followlinks=True):
        status = os.stat(root)
        again = (status.st_dev, status.st_ino) in entered
        entered.add((status.st_dev, status.st_ino))
        inside = [] if again else sorted(folders)
        yield root, inside, sorted(files), again
        folders[:] = [folder for folder in inside if not folder.startswith(".")]


def _remote(
    fs: AbstractFileSystem, path: str, known: Mapping[str, type[DocumentFormat]], listing: Listing
) -> dict[str, dict[str, Any]]:
    """Path and properties of the files that a URL names, or its glob, or a folder of it."""
    try:
        matched = {path: fs.info(path)}
    except Exception as error:  # a store may refuse to look for a name with a star in it
        if not (isinstance(error, FileNotFoundError) or glob.has_magic(path)):
            raise
        within = "/." in path
        matched = {p: i for p, i in fs.glob(path, detail=True).items() if within or "/." not in p}
    found: dict[str, dict[str, Any]] = {}
    for name, info in matched.items():
        # Of the web a page is a folder; asking for its links would fetch a file that is none.
        page = info.get("mimetype") == "text/html" and _suffix(_path(name)) not in known
        listed = {name: info}
        if is_folder := info["type"] == "directory" or page:
            listed = fs.find(name, detail=True)
        for file, properties in listed.items():
            if is_folder and (reason := _reason(_path(file).removeprefix(name), known)):
                listing.leave_out(reason, fs.unstrip_protocol(file))
            else:
                found[file] = properties
    return found


def _reason(below: str, known: Mapping[str, type[DocumentFormat]]) -> str | None:
    """Why a file of a folder is left out, if it is."""
    if any(name.startswith(".") for name in below.split("/")):
        return HIDDEN
    return None if _suffix(below) in known else NO_FORMAT


def _local(file: str, known: Mapping[str, type[DocumentFormat]]) -> tuple[Any, Part]:
    try:
        status = os.stat(file)
    except OSError as error:
        if not os.path.islink(file):
            raise unreadable(file, error) from error
        raise UserError(f"source: {shown(file)} is a link that leads nowhere: correct or delete it") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(
            f"source: {shown(file)} is a pipe or a device, and sources are read twice: write it to a file first"
        )
    return (status.st_dev, status.st_ino), _part(file, file, known, status.st_size, str(status.st_mtime_ns))


def _part(url: str, name: str, known: Mapping[str, type[DocumentFormat]], size: int, version: str) -> Part:
    return Part(url, known.get(_suffix(name), Unknown), COMPRESSIONS.get(Path(name.lower()).suffix), size, version)


def _path(name: str) -> str:
    """A name without the query of a URL (`…/a.jsonl?download=true`), which the web's file system leaves in it."""
    return name.partition("?")[0] if name.startswith(("http://", "https://")) else name


def _suffix(path: str) -> str:
    """What a name ends in before a compression's suffix."""
    name = Path(path.lower())
    return Path(name.stem).suffix if name.suffix in COMPRESSIONS else name.suffix
