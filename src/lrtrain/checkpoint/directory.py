"""The checkpoints of one run, files or folders of shards in `<run directory>/checkpoints`; no Lightning."""

import re
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

from lrtrain.checkpoint.shard_folder import fault
from lrtrain.checkpoint.single_file import PARTIAL
from lrtrain.runtime.errors import UserError

FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d{8,})\.ckpt")


def resolve_ckpt_path(ckpt_path: str | None, run_dir: Path, required: bool = False) -> Path | None:
    """The checkpoint that `--ckpt_path` means for a run: None for none, the newest whole one for `last`, else the file.

    For `last` it prints which checkpoint it takes, which it passed over and why, or that there is none.

    Raises:
        UserError: the file is missing, cut short, changed since it was written, or not a checkpoint; with `required`
            (validate, test) also where there is none for `last`, from which fit starts at step 0.
    """
    if ckpt_path is None:
        return None
    if ckpt_path != "last":
        if why := fault(Path(ckpt_path)):
            raise UserError(f"--ckpt_path {ckpt_path}: {why}; pass a whole .ckpt, or 'last' for the newest one")
        return Path(ckpt_path)
    folder = run_dir / FOLDER
    path, passed_over = newest_whole(folder)
    for broken, why in passed_over:
        print(f"passed over {broken}: {why}", file=sys.stderr)
    none = f"no {'whole ' if passed_over else ''}checkpoint under {folder}"
    if path is None and required:
        raise UserError(f"--ckpt_path last: {none}; pass the path of a checkpoint")
    line = f"continuing from {path}" if path is not None else f"{none}: starting from step 0"
    print(line, file=sys.stderr, flush=True)
    return path


def newest_whole(folder: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """Returns the whole checkpoint with the highest step, and the broken ones passed over, each with the reason."""
    passed_over: list[tuple[Path, str]] = []
    for path in steps_in(folder).values():
        if (why := fault(path)) is None:
            return path, passed_over
        passed_over.append((path, why))
    return None, passed_over


def step_path(folder: Path, step: int) -> Path:
    """`folder/step-00000500.ckpt` for step 500."""
    return folder / f"step-{step:08d}.ckpt"


def steps_in(folder: Path) -> dict[int, Path]:
    """The checkpoints of a folder, whole or not, by optimizer step, newest first; empty where there is no folder."""
    found = {int(m[1]): p for p in folder.glob("step-*.ckpt") if (m := _NAME.fullmatch(p.name))}
    return dict(sorted(found.items(), reverse=True))


def step_of(path: Path) -> int:
    """The step of a checkpoint by its name."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def prune(folder: Path, keep: int, needed: Collection[Path] = ()) -> None:
    """Removes all but the `keep` newest and those that are still needed; -1 keeps all."""
    if keep != -1:
        for path in list(steps_in(folder).values())[keep:]:
            if path not in needed:
                remove(path)


def set_aside(folder: Path, step: int) -> list[tuple[Path, Path]]:
    """Renames checkpoints ahead of `step`, where the run resumes, and returns (old, new) names.

    They are broken or belong to an abandoned continuation: neither `last` nor `prune` may count them.
    """
    ahead = [(path, path.with_name(path.name + ".aside")) for at, path in steps_in(folder).items() if at > step]
    for path, aside in ahead:
        remove(aside)  # of an earlier course; a folder would not give way
        path.rename(aside)
    return ahead


def remove_partial(folder: Path) -> list[Path]:
    """Removes what a killed process left half written or half downloaded, and returns it."""
    leftovers = sorted([*folder.glob(f"*{PARTIAL}"), *folder.glob(".step-*.tmp")])
    for path in leftovers:
        remove(path)
    return leftovers


def remove(path: Path) -> None:
    """Removes a checkpoint, a file or a folder of shards; nothing if there is none."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if path.suffix != PARTIAL:
        path = path.rename(path.with_name(path.name + PARTIAL))  # half removed it must not look like a checkpoint
    shutil.rmtree(path)
