"""`lrtrain report`: one run as one page that opens offline."""

from pathlib import Path

from lrtrain.cli.arguments import Arguments
from lrtrain.runtime.errors import UserError


def main(argv: list[str]) -> int:
    """Writes the page of a run from its own record, and says where.

    Raises:
        UserError: no such run, a damaged record, or a file that cannot be written.
    """
    parser = Arguments(
        prog="lrtrain report",
        description="One page of a run: its course, layers, samples, held-out loss, configuration, data and machine. "
        "lrtrain fit writes it at the end of a run; this makes it again, or of a run that goes on or was stopped.",
    )
    parser.add_argument(
        "run",
        nargs="?",
        help="a run directory, a checkpoint, a folder of runs (its newest), a name of runs or the URL of a run in a "
        "store; without it the newest",
    )
    parser.add_argument("--runs", default="runs", help="folder of the runs (default runs)")
    parser.add_argument(
        "--out", type=Path, help="page to write, .html (default: report.html in the run directory; of a URL, here)"
    )
    arguments = parser.parse_args(argv)
    out: Path | None = arguments.out
    if out is not None and out.suffix not in (".html", ".htm"):
        raise UserError(f"--out {out}: name a file that ends in .html or .htm")

    from lrtrain.checkpoint.remote_runs import cached_record
    from lrtrain.runtime.stores import is_remote
    from lrtrain.studies.report.run_report import REPORT, write_report
    from lrtrain.studies.report.which_run import run_directory

    if arguments.run is not None and is_remote(arguments.run):
        run_dir, out = cached_record(arguments.run), out or Path(REPORT)
        print(f"run {arguments.run}")
    else:
        run_dir = run_directory(arguments.run, arguments.runs)
        print(f"run {run_dir}")
    print(f"wrote {write_report(run_dir, out)}")
    return 0
