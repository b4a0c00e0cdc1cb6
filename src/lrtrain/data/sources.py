"""What files a `source` names: the standard library, paths, folders, globs and fsspec URLs, as a list of parts."""

import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from lrtrain.data.formats import Code, DocumentFormat, Text, formats_by_suffix
from lrtrain.runtime.errors import UserError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
# Not prose and not code that one would learn from: test suites hold files with broken encodings on purpose.
STDLIB_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages"}


@dataclass(frozen=True)
class Part:
    """One file of a source: `compression` is None, `gzip` or `zstd`; `size` in bytes, 0 where nobody tells it."""

    url: str
    format: type[DocumentFormat]
    compression: str | None
    size: int

    @property
    def remote(self) -> bool:
        return "://" in self.url


def list_parts(source: Iterable[str], formats: Iterable[str] = ()) -> list[Part]:
    """The files of `source` in a fixed order: as given, sorted by path within a folder or a glob, each once.

    Each entry is `stdlib` (the text of the running Python's standard library), a file, a folder (its files of a known
    format, at any depth, none that is hidden), a glob, or any fsspec URL of these. A named file of an unknown suffix
    is read as text. `formats` are class paths of further formats. Raises UserError for an entry that names nothing or
    cannot be listed.
    """
    known = formats_by_suffix([*formats])
    parts: dict[str, Part] = {}
    for entry in source:
        for part in _stdlib() if entry == "stdlib" else _expand(entry, known):
            parts.setdefault(part.url, part)
    return list(parts.values())


def unreadable(url: str, error: Exception) -> UserError:
    """The line for an error met while reading `url`."""
    if isinstance(error, ImportError):
        return UserError(f"{url} needs a package that is not installed ({_line(error)}): pip install 'lrtrain[hf,s3]'")
    if isinstance(error, UnicodeDecodeError):
        return UserError(f"{url} is not UTF-8 text: convert it (iconv -f LATIN1 -t UTF-8) or leave it out of source")
    if isinstance(error, FileNotFoundError):
        return UserError(f"{url} does not exist: correct source")
    advice = "check the network and the URL" if "://" in url else "check the file"
    return UserError(f"cannot read {url}: {_line(error)} ({type(error).__name__}); {advice}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _stdlib() -> list[Part]:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = (f for f in root.rglob("*.py") if STDLIB_LEFT_OUT.isdisjoint(f.relative_to(root).parts[:-1]))
    parts = [Part(str(f), Code, None, f.stat().st_size) for f in sorted(files) if _is_utf8(f)]
    if not parts:
        raise UserError(f"source stdlib: no .py files under {root}: give a path to text instead")
    return parts


def _is_utf8(file: Path) -> bool:
    try:
        file.read_text("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _expand(entry: str, known: Mapping[str, type[DocumentFormat]]) -> list[Part]:
    try:
        fs, path = url_to_fs(entry)
        if fs.isdir(path):
            below = fs.find(path, detail=True).items()
            found = {p: i for p, i in below if _suffix(p) in known and "/." not in p.removeprefix(path)}
            if not found:
                raise UserError(f"source {entry}: the folder holds no {' '.join(known)} file (or .gz, .zst of these)")
        elif fs.exists(path):
            found = {path: fs.info(path)}
        elif any(c in path for c in "*?["):
            found = {p: i for p, i in fs.glob(path, detail=True).items() if i["type"] == "file"}
        else:
            found = {}
    except UserError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise unreadable(entry, error) from error
    if not found:
        raise UserError(f"source {entry} matches no file: correct the path or the glob")
    return [_part(fs, path, info, known.get(_suffix(path), Text)) for path, info in sorted(found.items())]


def _part(fs: Any, path: str, info: dict[str, Any], kind: type[DocumentFormat]) -> Part:
    url = path if "file" in fs.protocol else fs.unstrip_protocol(path)
    return Part(url, kind, COMPRESSIONS.get(Path(path).suffix.lower()), int(info.get("size") or 0))


def _suffix(path: str) -> str:
    """What a name ends in before a compression's suffix."""
    name = Path(path.lower())
    return Path(name.stem).suffix if name.suffix in COMPRESSIONS else name.suffix
