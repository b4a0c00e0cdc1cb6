"""The newest whole checkpoint of a name's runs, on this disk or in a store."""

import sys
from dataclasses import dataclass
from pathlib import Path

from lrtrain.checkpoint.directory import FOLDER, step_path, steps_in
from lrtrain.checkpoint.remote_runs import (
    Link,
    RemoteRun,
    checkpoint_name,
    fetch,
    fetch_record,
    link_of,
    read_claim,
    run_url,
    runs_at,
    write_link,
)
from lrtrain.checkpoint.shard_folder import fault
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import writing
from lrtrain.runtime.stores import joined
from lrtrain.tracking.spool import note_what_is_lost


@dataclass
class _Run:
    """A run of the name: its directory, if it is on this disk, and its copy, if there is one."""

    number: int
    here: Path | None = None
    there: RemoteRun | None = None

    def steps(self) -> list[int]:
        """Where it has checkpoints, here or there, newest first."""
        here = steps_in(self.here / FOLDER) if self.here is not None else {}
        return sorted({*here, *(self.there.steps if self.there is not None else ())}, reverse=True)


def newest_anywhere(
    runs: str | Path, name: str, path: str, directories: list[Path], wanted: tuple[int, int] | None = None
) -> tuple[Path, Path, str | None] | None:
    """Run directory, checkpoint, and the URL from which it came if it did; None where there is no whole one.

    Of one step the file here is taken. One from the store comes to the run's directory, which is made if this disk has
    none, with the run's record.

    Args:
        runs: Folder of the runs on this disk.
        name: Of the runs.
        path: Of the copies.
        directories: The runs on this disk.
        wanted: (number of a copy, step) of the one that must be taken; None for the newest.

    Raises:
        UserError: two runs could be meant, or the one that is wanted is not whole.
    """
    for run in _all_runs(name, path, directories):
        if wanted is not None and (run.there is None or run.there.number != wanted[0]):
            continue
        for step in run.steps() if wanted is None else [wanted[1]]:
            found, why = _whole(runs, name, run, step)
            if found is not None:
                print(f"continuing from {found[1]}", file=sys.stderr, flush=True)
                return found
            if wanted is not None:
                raise UserError(f"--ckpt_path {run_url(path, name, wanted[0])}/{checkpoint_name(step)}: {why}")
            print(f"passed over {why}", file=sys.stderr)
    return None


def _all_runs(name: str, path: str, directories: list[Path]) -> list[_Run]:
    """The runs here and there, newest first; a directory and its copy are one."""
    copies = runs_at(path, name)
    links = {directory: link_of(directory, path) for directory in directories}
    runs: list[_Run] = []
    for directory, link in links.items():
        number = int(link.url.rpartition("/")[2]) if link is not None else int(directory.name)
        of_it = link is not None and number in copies and link.url == copies[number].url
        if of_it and link is not None and read_claim(link.url) not in (None, link.claim):
            of_it = False
        runs.append(_Run(number, directory, copies.pop(number) if of_it else None))
    runs += [_Run(number, None, copy) for number, copy in copies.items()]
    with_steps = sorted((run for run in runs if run.steps()), key=lambda run: run.number, reverse=True)
    if len(with_steps) > 1 and with_steps[0].number == with_steps[1].number:
        one, other = (str(run.here or (run.there and run.there.url)) for run in with_steps[:2])
        raise UserError(f"--ckpt_path last: {one} and {other} are two runs; name the checkpoint that is meant")
    return with_steps


def _whole(runs: str | Path, name: str, run: _Run, step: int) -> tuple[tuple[Path, Path, str | None] | None, str]:
    """What `newest_anywhere` returns for a step of a run, or why there is no whole one."""
    why = ""
    if run.here is not None and step in steps_in(run.here / FOLDER):
        file = step_path(run.here / FOLDER, step)
        why = f"{file}: {fault(file)}"
        if fault(file) is None:
            return (run.here, file, None), ""
    if run.there is None or step not in run.there.steps:
        return None, why or "there is no such checkpoint"
    directory = run.here or _directory_of(runs, name, run.there)
    if fetch_record(run.there, directory):
        note_what_is_lost(directory)
    file, url = step_path(directory / FOLDER, step), joined(run.there.url, checkpoint_name(step))
    if file.exists():  # broken: it makes room
        file.replace(file.with_name(file.name + ".aside"))
    fetch(url, file)
    run.here = directory
    broken = fault(file)
    return ((directory, file, url), "") if broken is None else (None, f"{url}: {broken}")


def _directory_of(runs: str | Path, name: str, copy: RemoteRun) -> Path:
    """A directory for a run that this disk does not know, under its number unless another run has it."""
    number, claim = copy.number, read_claim(copy.url)
    if claim is None:
        raise UserError(f"{copy.url} has no run.json: it is no copy of a run; name the checkpoint that is meant")
    while True:
        directory = Path(runs, name, f"{number:04d}")
        try:
            with writing(f"cannot make {directory}", "set --runs to a folder that can be written"):
                directory.mkdir(parents=True)
        except UserError as error:
            if not isinstance(error.__cause__, FileExistsError):
                raise
            number += 1
            continue
        write_link(directory, Link(copy.url, claim))
        return directory
