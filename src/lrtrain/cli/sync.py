"""`lrtrain sync`: send to MLflow what waits in the run directories, after a tracking server was down."""

import socket
from collections import Counter
from contextlib import closing
from pathlib import Path

from lrtrain.cli.arguments import Arguments
from lrtrain.runtime.errors import UserError
from lrtrain.tracking.afterwards import tracked_at
from lrtrain.tracking.delivery import Delivery
from lrtrain.tracking.destination import reason, redact, resolve_uri
from lrtrain.tracking.spool import SPOOL_NAME, Spool, SpoolBusyError


def main(argv: list[str]) -> int:
    """Send everything that waits; one line for each run.

    Raises:
        UserError: a folder does not exist, a run's files are damaged, or an MLflow is down (after the others).
    """
    parser = Arguments(prog="lrtrain sync", description="Send to MLflow what waits in run directories.")
    parser.add_argument("folders", nargs="*", default=["runs"], help="run directories or folders of them (runs)")
    parser.add_argument("--tracking-uri", help="send to this MLflow instead of the one each run was tracked with")
    arguments = parser.parse_args(argv)
    uri = resolve_uri(arguments.tracking_uri, "runs") if arguments.tracking_uri else None

    failed: dict[str, str] = {}  # where -> why
    waiting: Counter[str] = Counter()  # where -> points
    run_dirs = _run_dirs([Path(folder) for folder in arguments.folders])
    for run_dir in run_dirs:
        delivery = Delivery(run_dir, uri or tracked_at(run_dir))
        where = redact(delivery.uri)
        try:
            spool = Spool(run_dir)
        except SpoolBusyError:
            print(f"{run_dir}: still running, it sends its points itself")
            continue
        with closing(spool):
            _mark_killed(spool)
            if where not in failed:
                try:
                    print(f"{run_dir}: {delivery.send()} points sent to {where}")
                    continue
                except UserError:
                    raise
                except Exception as error:  # MLflow, its database and the network raise what they like
                    failed[where] = reason(error, delivery.uri)
        waiting[where] += delivery.waiting()
        print(f"{run_dir}: {delivery.waiting()} points wait for {where}")
    if not run_dirs:
        print(f"no run in {', '.join(arguments.folders)}: nothing to send")
    if failed:
        down = (f"MLflow at {at} takes no records ({why}): {waiting[at]} points wait" for at, why in failed.items())
        raise UserError(f"{'; '.join(down)}; start it and run `lrtrain sync` again, or give another --tracking-uri")
    return 0


def _run_dirs(folders: list[Path]) -> list[Path]:
    found: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"no folder {folder}: give a run directory or a folder that holds some")
        found.update(dict.fromkeys(sorted(path.parent for path in folder.rglob(SPOOL_NAME))))
    return list(found)


def _mark_killed(spool: Spool) -> None:
    # Nobody owns the spool, so its process is gone; on another machine's file system the lock may not tell.
    if spool.status == "RUNNING" and spool.host == socket.gethostname():
        spool.finish("KILLED", spool.last_time)
