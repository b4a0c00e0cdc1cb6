"""Where a run lives: <runs>/<name>/<NNNN>/."""

import contextlib
from pathlib import Path

from lrtrain.checkpoint.directory import FOLDER, newest_whole, resolve_ckpt_path
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import writing
from lrtrain.runtime.ranks import decide_on_rank_zero, is_first

_made: list[Path] = []


def run_directories(runs: str | Path, name: str) -> list[Path]:
    """The directories of all runs of a name, oldest first."""
    return sorted((path for path in Path(runs, name).glob("[0-9]" * 4) if path.is_dir()), key=lambda path: path.name)


def new_run_directory(runs: str | Path, name: str) -> Path:
    """Makes and returns the next free directory; safe between processes that start at once."""
    existing = run_directories(runs, name)
    number = int(existing[-1].name) + 1 if existing else 1
    while True:
        path = Path(runs, name, f"{number:04d}")
        advice = "set --runs to a folder that can be written"
        with writing(f"cannot make {path}", advice), contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            _made.append(path)
            return path
        number += 1


def discard_if_empty() -> None:
    """Removes the directories that this process made, and those of their names, if nothing was written there."""
    while _made and is_first():
        path = _made.pop()
        with contextlib.suppress(OSError):  # not empty, or gone
            path.rmdir()
            path.parent.rmdir()


def resolve_run(command: str, runs: str, name: str, ckpt_path: str | None) -> tuple[Path, Path | None]:
    """The run directory and the checkpoint that a command works with; the first process chooses for all of them.

    `last` continues the newest run of the name that has a whole checkpoint. An explicit checkpoint of a run of that
    name continues that run; any other starts a new one. Without a checkpoint `fit` starts a new run.

    Raises:
        UserError: the name is no folder inside `runs`, validate or test finds no checkpoint, or it is not whole.
    """
    chosen = decide_on_rank_zero(lambda: [path and str(path) for path in _choose(command, runs, name, ckpt_path)])
    return Path(chosen[0]), Path(chosen[1]) if chosen[1] else None


def _choose(command: str, runs: str, name: str, ckpt_path: str | None) -> tuple[Path, Path | None]:
    if not Path(name).parts or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"name is {name!r}: give the name of a folder inside {runs}")
    directories = run_directories(runs, name)
    if command != "fit" and ckpt_path is None:
        ckpt_path = "last"
    if ckpt_path == "last":
        newest = _newest_with_checkpoint(directories) or (directories[-1] if directories else Path(runs, name))
        checkpoint = resolve_ckpt_path("last", newest, required=command != "fit")
        return (newest if checkpoint is not None else new_run_directory(runs, name)), checkpoint
    checkpoint = resolve_ckpt_path(ckpt_path, Path(runs, name))
    if checkpoint is not None:
        own = next((d for d in directories if d.resolve() in checkpoint.resolve().parents), None)
        if own is not None:
            return own, checkpoint
    return (new_run_directory(runs, name) if command == "fit" else Path(runs, name)), checkpoint


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
