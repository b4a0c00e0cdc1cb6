"""The text of the packages that are installed for the running Python: the source `site-packages`."""

import hashlib
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

from lrtrain.runtime.errors import UserError

SITE_PACKAGES = "site-packages"
# Not prose and not code that one would learn from: test suites hold files with broken encodings on purpose.
TESTS = {"test", "tests", "idle_test"}
SUFFIXES = (".py", ".md", ".rst")
REPEATED, NOT_TEXT = "with the text of another", "not in UTF-8"


@dataclass(frozen=True)
class Installed:
    """A file of an installed package (`numpy 2.3.1`), its size in bytes, and the hash of its content."""

    path: str
    package: str
    size: int
    digest: str


def installed_files(leave_out: Callable[[str, str], object]) -> list[Installed]:
    """The sources and documentation of all installed packages but this one, each text once, sorted by its hash.

    That order depends on the packages and their versions alone, and mixes them: every part of the whole is like any
    other. Tests, metadata and licenses are no part of it; `leave_out` gets reason and name of what else is not.

    Raises:
        UserError: there are none.
    """
    found: dict[str, Installed] = {}
    for name, package in sorted(_packages().items()):
        if name == "lrtrain":
            continue
        said = f"{package.metadata['Name']} {package.version}"
        for path in _files(package):
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            if not content.strip():
                continue
            if b"\0" in content or not _decodes(content):
                leave_out(NOT_TEXT, str(path))
            elif digest in found:
                leave_out(REPEATED, str(path))
            else:
                found[digest] = Installed(str(path), said, len(content), digest)
    if not found:
        raise UserError(f"source {SITE_PACKAGES}: no package is installed in {', '.join(_folders())}: give a path")
    return [found[digest] for digest in sorted(found)]


def _packages() -> dict[str, Distribution]:
    """The installed packages by their normalized name; the first that Python would find of one name."""
    found: dict[str, Distribution] = {}
    for one in distributions(path=_folders()):
        described = one.read_text("METADATA") or one.read_text("PKG-INFO")
        if described and one.metadata["Name"]:  # what is left of a broken removal has none
            found.setdefault(re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower(), one)
    return found


def _folders() -> list[str]:
    paths = sysconfig.get_paths()
    return list(dict.fromkeys([paths["purelib"], paths["platlib"]]))


def _files(package: Distribution) -> Iterator[Path]:
    """The files of a package that are text to learn from, in the order of their names."""
    for file in sorted(package.files or (), key=str):
        folders = file.parts[:-1]
        metadata = any(name.endswith((".dist-info", ".egg-info")) for name in folders)
        if file.suffix in SUFFIXES and TESTS.isdisjoint(folders) and ".." not in folders and not metadata:
            path = Path(str(package.locate_file(file)))
            if path.is_file():
                yield path


def _decodes(content: bytes) -> bool:
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    return True
