"""Where an export goes: a folder of this machine, or one in a store, whole or absent in both."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lrtrain.checkpoint.huggingface.exported_folder import check_target
from lrtrain.data.lease import leased
from lrtrain.data.remote_preparation import staging_folder
from lrtrain.runtime import stores
from lrtrain.runtime.errors import UserError

LAST = "config.json"
"""Uploaded after all other files: without it transformers takes a folder for no model."""

UNFINISHED = ".unfinished"
"""There from before the first file of an upload until after the last."""

LEASE = ".exporting.json"
"""There while somebody writes: others wait."""


def check_out(out: str | Path) -> None:
    """Refuses what cannot be the target of an export.

    Raises:
        UserError: something is there already, other than an upload that was interrupted; the store refuses.
        TemporaryError: the store does not answer.
    """
    if not stores.is_remote(out):
        check_target(Path(out))
        return
    there = stores.stored(str(out)).keys() - {LEASE}
    if LAST in there or (there and UNFINISHED not in there):
        raise UserError(f"--out {out}: {min(there)} exists already there; name a new URL")


@contextmanager
def folder_for(out: str | Path) -> Iterator[Path]:
    """The folder to write for `out`: itself, or for a URL one below `LRTRAIN_STAGING`, uploaded at the block's end."""
    check_out(out)
    if not stores.is_remote(out):
        yield check_target(Path(out))
        return
    folder = staging_folder(str(out))
    with leased(stores.joined(str(out), LEASE), f"An export to {out}") as lease:
        check_out(out)
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        try:
            yield folder
            lease.check()
            upload(folder, str(out))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def is_whole(url: str) -> bool:
    """Whether a store holds an export there."""
    return LAST in stores.stored(url)


def upload(folder: Path, url: str) -> None:
    """Copies an export to a store, where it is a model when all of it is there."""
    url = url.rstrip("/")
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    stores.write(stores.joined(url, UNFINISHED), b"")
    stores.clear_folder(url, LAST, keep=[UNFINISHED, LEASE])
    for name in [*(name for name in names if name != LAST), LAST]:
        stores.upload(folder / name, stores.joined(url, name))
    stores.delete(stores.joined(url, UNFINISHED))
