"""Which run a word of the command line means."""

from pathlib import Path

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.hints import near
from lrtrain.tracking.course import last_time
from lrtrain.tracking.spool import SPOOL_NAME


def run_directory(given: str | None, runs: str) -> Path:
    """The directory of a run: of a run directory, a file or folder inside one, a folder of runs or a name in `runs`.

    Of several runs it is the one whose record was written last; of all in `runs` when nothing is given.

    Raises:
        UserError: there is none.
    """
    if given is None:
        return _newest(Path(runs), f"no run in {runs}: train one with lrtrain fit, or name a run directory")
    path = Path(given)
    named = Path(runs, given)
    if not path.exists() and not named.exists():
        names = sorted({one.parent.parent.name for one in Path(runs).glob(f"*/*/{SPOOL_NAME}")})
        raise UserError(f"{given} is neither a path nor a name of runs in {runs}: {near(given, names)}")
    path = path if path.exists() else named
    for folder in (path, *path.absolute().parents[:2]):  # a checkpoint lies two below its run
        if (folder / SPOOL_NAME).is_file():
            return folder
    return _newest(path, f"{path} holds no record of a run ({SPOOL_NAME}): name a run directory or a folder of runs")


def _newest(folder: Path, none: str) -> Path:
    found = list(folder.rglob(SPOOL_NAME)) if folder.is_dir() else []
    if not found:
        raise UserError(none)
    return max(found, key=lambda spool: (last_time(spool) or 0, str(spool))).parent
