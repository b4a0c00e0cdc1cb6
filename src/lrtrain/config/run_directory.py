"""Where a run lives: <runs>/<name>/<NNNN>/, and with `checkpoints.path` its copy in a store."""

import contextlib
import sys
from pathlib import Path
from typing import NamedTuple

from lrtrain.checkpoint import remote_runs
from lrtrain.checkpoint.directory import FOLDER, newest_whole, resolve_ckpt_path
from lrtrain.config.init_from import Origin, carried_on, find_origin
from lrtrain.config.newest_run import newest_anywhere
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import writing
from lrtrain.runtime.ranks import decide_on_rank_zero, is_first
from lrtrain.runtime.stores import is_remote

_made: list[list[Path]] = []
"""A run's directory, then the folders above it that there were not before."""


def run_directories(runs: str | Path, name: str) -> list[Path]:
    """The directories of all runs of a name, oldest first."""
    return sorted((path for path in Path(runs, name).glob("[0-9]" * 4) if path.is_dir()), key=lambda path: path.name)


def new_run_directory(runs: str | Path, name: str, path: str | None = None) -> Path:
    """Makes and returns the next free directory; safe between processes that start at once.

    With a `path` of copies it is free in the store as well, and taken there.
    """
    existing = run_directories(runs, name)
    taken = [int(existing[-1].name)] if existing else [0]
    number = max([*taken, *(remote_runs.runs_at(path, name) if path else ())]) + 1
    while True:
        link = remote_runs.claim(remote_runs.run_url(path, name, number)) if path else None
        if link is not None or path is None:
            directory = Path(runs, name, f"{number:04d}")
            advice = "set --runs to a folder that can be written"
            above = [folder for folder in directory.parents if not folder.exists()]
            with writing(f"cannot make {directory}", advice), contextlib.suppress(FileExistsError):
                directory.mkdir(parents=True)
                _made.append([directory, *above])
                if link is not None:
                    remote_runs.write_link(directory, link)
                return directory
        number += 1


def discard_if_empty() -> None:
    """Removes the directories that this process made, and the folders above that it made, if nothing was written."""
    while _made and is_first():
        folders = _made.pop()
        with contextlib.suppress(OSError, UserError):  # not empty, or gone; a store that does not answer
            remote_runs.give_up(folders[0])
            for folder in folders:
                folder.rmdir()


class Place(NamedTuple):
    """Where a command works: the run directory and the checkpoint to go on from, or the weights to begin from.

    `init_from` is what the record says of these, and `weights` where they are, if the run begins with them now.
    """

    directory: Path
    checkpoint: Path | None
    init_from: str | None
    weights: Path | None


def resolve_run(
    command: str,
    runs: str,
    name: str,
    ckpt_path: str | None,
    path: str | None = None,
    nodes: int = 1,
    init_from: str | None = None,
) -> Place:
    """The run directory and the checkpoints that a command works with; the first process chooses for all of them.

    `last` continues the newest run of the name that has a whole checkpoint, here or, with a `path` of copies, in the
    store: then it comes to this disk, with the run's record. An explicit checkpoint of a run of that name, here or
    there, continues that run; any other starts a new one. Without a checkpoint `fit` starts a new run, from the weights
    of `init_from` if that is given.

    Raises:
        UserError: the name is no folder inside `runs`, validate or test finds no checkpoint, or it is not whole; the
            run that is to go on began from other weights than `init_from`.
        TemporaryError: the store does not answer.
    """

    def decide() -> list[str | None]:
        directory, checkpoint, url = _choose(command, runs, name, ckpt_path, path)
        origin, weights = init_from, None
        if command == "fit" and checkpoint is not None:
            origin = carried_on(init_from, checkpoint)
        elif command == "fit" and init_from is not None:
            found, weights = find_origin(init_from)
            origin = str(found)
        paths = [None if one is None else str(one) for one in (directory, checkpoint, weights)]
        return [*paths, url, origin]

    directory, checkpoint, weights, url, origin = decide_on_rank_zero(decide, nodes)
    if url and not Path(checkpoint).exists():  # on another host
        remote_runs.fetch(url, Path(checkpoint))
    noted = Origin.noted(origin) if weights else None
    if noted and is_remote(noted.where) and not Path(weights).exists():
        remote_runs.fetch(noted.where, Path(weights))
    return Place(Path(directory), Path(checkpoint) if checkpoint else None, origin, Path(weights) if weights else None)


def _choose(
    command: str, runs: str, name: str, ckpt_path: str | None, path: str | None
) -> tuple[Path, Path | None, str | None]:
    """Run directory, checkpoint, and the URL that this one came from."""
    if not Path(name).parts or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"name is {name!r}: give the name of a folder inside {runs}")
    if path is not None:
        path = remote_runs.check_path(path)
    if command != "fit" and ckpt_path is None:
        ckpt_path = "last"
    wanted = remote_runs.of_a_run(ckpt_path, path, name) if path and ckpt_path and command == "fit" else None
    if path is not None and (ckpt_path == "last" or wanted is not None):
        found = newest_anywhere(runs, name, path, run_directories(runs, name), wanted)
        if found is None:
            none = f"no checkpoint under {Path(runs, name)} and {path}/{name}"
            if command != "fit" or wanted is not None:
                raise UserError(f"--ckpt_path {ckpt_path}: {none}; pass the path of a checkpoint")
            print(f"{none}: starting from step 0", file=sys.stderr, flush=True)
            return new_run_directory(runs, name, path), None, None
        if command == "fit":
            remote_runs.linked(found[0], path, name)
        return found
    url = ckpt_path if ckpt_path and is_remote(ckpt_path) else None
    here = str(remote_runs.cached(url)) if url is not None else ckpt_path
    directory, checkpoint = _choose_here(command, runs, name, here, path)
    if path is not None and command == "fit":
        remote_runs.linked(directory, path, name)
    return directory, checkpoint, url


def _choose_here(
    command: str, runs: str, name: str, ckpt_path: str | None, path: str | None
) -> tuple[Path, Path | None]:
    directories = run_directories(runs, name)
    if ckpt_path == "last":
        newest = _newest_with_checkpoint(directories) or (directories[-1] if directories else Path(runs, name))
        checkpoint = resolve_ckpt_path("last", newest, required=command != "fit")
        return (newest if checkpoint is not None else new_run_directory(runs, name)), checkpoint
    checkpoint = resolve_ckpt_path(ckpt_path, Path(runs, name))
    if checkpoint is not None:
        own = next((d for d in directories if d.resolve() in checkpoint.resolve().parents), None)
        if own is not None:
            return own, checkpoint
    return (new_run_directory(runs, name, path) if command == "fit" else Path(runs, name)), checkpoint


def _newest_with_checkpoint(directories: list[Path]) -> Path | None:
    """The newest run that has a whole checkpoint; says which runs with broken ones alone it passes over."""
    passed_over: list[Path] = []
    for directory in reversed(directories):
        checkpoint, broken = newest_whole(directory / FOLDER)
        if checkpoint is not None:
            for other in passed_over:
                print(f"passed over the run {other}: none of its checkpoints is whole")
            return directory
        if broken:
            passed_over.append(directory)
    return None
