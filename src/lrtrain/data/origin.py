"""What a data set was made from, and what of it is another today."""

import hashlib
import inspect
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrtrain.data.installed import SITE_PACKAGES
from lrtrain.data.known_formats import formats_named
from lrtrain.data.listing import Part
from lrtrain.data.messages import NAMES, shown
from lrtrain.data.tokenizer import load_tokenizer, local_file

Origin = list[list[Any]]


def origin(parts: Sequence[Part], formats: Sequence[str] = ()) -> Origin:
    """Name, size in bytes and version of each file in `parts`, and of the modules of own formats.

    A local name is the path below the folder that all local files share, so that the whole may move. The version is
    the time of change, what a store has in its place, or a module's hash. A package is one, with the size and hash of
    its text.
    """
    installed = [part for part in parts if part.package]
    parts = [part for part in parts if not part.package]
    local = [part.url for part in parts if "://" not in part.url]
    shared = os.path.commonpath([os.path.dirname(file) for file in local]) if local else ""
    files = [
        [part.url if "://" in part.url else os.path.relpath(part.url, shared), part.size, part.version]
        for part in parts
    ]
    of_package = sorted(installed, key=lambda part: (part.package, part.version))
    for package, own in itertools.groupby(of_package, key=lambda part: part.package):
        texts = [*own]
        digest = hashlib.sha256("".join(part.version for part in texts).encode()).hexdigest()
        files.append([f"{SITE_PACKAGES}: {package}", sum(part.size for part in texts), digest])
    for name, kind in zip(formats, formats_named(formats), strict=True):
        code = Path(inspect.getfile(kind)).read_bytes()
        files.append([f"the format {name}", len(code), hashlib.sha256(code).hexdigest()])
    return files


def changes(made: Origin, now: Origin) -> str | None:
    """What is new, gone or different in `now`, in words; None if nothing is."""
    if not made:
        return "its manifest, by an earlier version, does not name them"
    before, after = ({name: rest for name, *rest in files} for files in (made, now))
    found = [f"{name} is new" for name in after if name not in before]
    found += [f"{name} is gone" for name in before if name not in after]
    found += [f"{name} has changed" for name in before if name in after and before[name] != after[name]]
    if not found:
        return None if list(before) == list(after) else "the files come in another order"
    more = f" and {len(found) - NAMES:,} more" if len(found) > NAMES else ""
    return shown(", ".join(found[:NAMES])) + more


def tokenizer_changes(asked: str | None, used: Path) -> str | None:
    """Whether the tokenizer file `asked` is another than `used`, in words; a hub's name is taken to stay the same."""
    if asked is None or local_file(asked) is None:
        return None
    same = load_tokenizer(asked).to_str() == load_tokenizer(str(used)).to_str()
    return None if same else f"tokenizer {asked} has changed"
