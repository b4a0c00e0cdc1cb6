"""A data set at a URL: prepared in a folder of this machine, uploaded, and there when its manifest is."""

import hashlib
import json
import os
import shutil
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path

from lrtrain.data.lease import Lease, leased
from lrtrain.data.manifest import MANIFEST, SPLITS, Manifest
from lrtrain.data.preparation import existing, prepare, refuse_stale
from lrtrain.data.spec import PrepareSpec
from lrtrain.data.unfinished import TOKENIZER
from lrtrain.runtime import stores
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import write_atomically

LEASE = ".preparing.json"
UNFINISHED = ".unfinished"  # there from before the first upload until after the manifest's
UPLOADED = ".uploaded.json"  # in the staging folder: what is there already


def prepare_remote(spec: PrepareSpec, url: str, ask_stores: bool = True) -> Manifest:
    """Make the data set of `spec` at `url`, or go on with one that was interrupted on this machine.

    It is prepared as in a local folder, in one below `LRTRAIN_STAGING` (`~/.cache/lrtrain/staging`), which needs room
    for all of it, stays after an interruption and goes after the upload. The manifest is uploaded last. Of several
    machines one prepares and the others wait. A data set of the same request is returned as it is; without `ask_stores`
    its sources are not compared. Raises what `prepare` and the functions of `runtime/stores.py` raise.
    """
    _refuse_own_source(spec, url)
    if not stores.exists(stores.joined(url, MANIFEST)):
        with leased(stores.joined(url, LEASE), f"Preparing {url}") as lease:
            if not stores.exists(stores.joined(url, MANIFEST)):
                return _prepare(spec, url, lease)
    manifest = existing(spec, url)
    if ask_stores:
        with tempfile.TemporaryDirectory() as folder:
            stores.download(stores.joined(url, TOKENIZER), Path(folder) / TOKENIZER)
            refuse_stale(spec, manifest, Path(folder), ask_stores, url)
    return manifest


def staging_folder(url: str) -> Path:
    """Where the data set of a URL is prepared: the end of the URL for people, and a hash of it."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    root = Path(os.environ.get(stores.STAGING) or os.path.join(base, "lrtrain", "staging"))
    return root / f"{url.rstrip('/').rpartition('/')[2]}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def _prepare(spec: PrepareSpec, url: str, lease: Lease) -> Manifest:
    there = stores.stored(url)
    foreign = {name.partition("/")[0] for name in there} & {*SPLITS, TOKENIZER}
    if foreign and UNFINISHED not in there:
        raise UserError(f"{url}/{min(foreign)} exists and is not from a preparation: name an empty or a new URL")
    folder = staging_folder(url)
    print(f"Preparing in {folder}, to be uploaded to {url}", flush=True)
    manifest = prepare(spec, str(folder))
    _upload(folder, manifest, url, lease)
    shutil.rmtree(folder)
    return manifest


def _upload(folder: Path, manifest: Manifest, url: str, lease: Lease) -> None:
    """Upload all but what an interrupted upload from here brought and nobody changed since; the manifest last."""
    names = {TOKENIZER: (folder / TOKENIZER).stat().st_size}
    for split in SPLITS:
        index = f"{split}/index.json"
        names[index] = (folder / index).stat().st_size
        names |= {f"{split}/{chunk.file}": chunk.bytes for chunk in manifest.split(split).chunks}
    stores.write(stores.joined(url, UNFINISHED), b"")
    done, there = _uploaded(folder, manifest), stores.stored(url)
    for number, (name, size) in enumerate(names.items(), 1):
        if name in there and done.get(name) == there[name].version and there[name].size == size:
            continue
        lease.check()
        print(f"Uploading {name} ({number:,} of {len(names):,} files)", flush=True)
        stores.upload(folder / name, stores.joined(url, name))
        done[name] = stores.version(stores.joined(url, name))
        write_atomically(folder / UPLOADED, json.dumps({"of": _identity(manifest), "files": done}).encode())
    for split in SPLITS:
        kept = [name.partition("/")[2] for name in names if name.startswith(f"{split}/")]
        stores.clear_folder(stores.joined(url, split), "index.json", kept)
    lease.check()
    there = stores.stored(url)
    if wrong := [name for name, size in names.items() if name not in there or there[name].size != size]:
        raise UserError(f"{url}/{wrong[0]} is not what was uploaded: somebody else writes there, name another URL")
    stores.upload(folder / MANIFEST, stores.joined(url, MANIFEST))
    stores.delete(stores.joined(url, UNFINISHED))


def _uploaded(folder: Path, manifest: Manifest) -> dict[str, str]:
    """Name and version of what an earlier upload of the same contents brought."""
    try:
        record = json.loads((folder / UPLOADED).read_bytes())
    except FileNotFoundError:
        return {}
    return dict(record["files"]) if record["of"] == _identity(manifest) else {}


def _identity(manifest: Manifest) -> list[str]:
    return [manifest.tokenizer_sha256, manifest.train.digest, manifest.val.digest]


def _refuse_own_source(spec: PrepareSpec, url: str) -> None:
    for entry in spec.source:
        named = entry.rstrip("/").partition("/**")[0].split("/")
        above = url.split("/")[: len(named)]
        matches = len(above) == len(named) and all(map(fnmatchcase, above, named))
        if "://" in entry and (matches or above == named):
            raise UserError(f"source {entry} holds {url} itself: prepare to a URL outside of it")
