"""`lrtrain doctor`: what will go wrong before it does, on this machine and for a configuration."""

import json
import os
import socket
import sys

from lrtrain.cli.arguments import Arguments
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.ranks import is_first


def main(argv: list[str]) -> int:
    """Prints a table of pass, warn and fail with what to do; 2 where something failed. Among the processes of a job the
    first one of each host looks, and beside the first of all only what failed is told."""
    options, rest = _arguments().parse_known_args(argv)
    if any(os.environ.get(name, "0") not in ("", "0") for name in ("LOCAL_RANK", "SLURM_LOCALID")):
        return 0
    try:
        from lrtrain.studies.doctor.examination import examine
        from lrtrain.studies.doctor.examination_report import as_dict, exit_code, report
    except (ImportError, OSError) as error:  # a library that another one needs
        raise UserError(
            f"the installation is broken: {error}; pip install lrtrain again, with -c constraints.txt"
        ) from error

    findings = examine(rest)
    if not is_first():
        for finding in findings:
            if finding.status == "fail":
                line = f"{socket.gethostname()}: {finding.check}: {finding.found}; {finding.advice}"
                print(f"lrtrain: doctor: {line}", file=sys.stderr)
    elif options.json:
        print(json.dumps(as_dict(findings), indent=2, ensure_ascii=False))
    else:
        print(report(findings))
    return exit_code(findings)


def _arguments() -> Arguments:
    parser = Arguments(
        prog="lrtrain doctor",
        description="Tells what will go wrong before it does: of the machine alone, or with --config of a run on it.",
        epilog="Any other argument belongs to the configuration: --config FILE, --data.path DIR, … Exit code 0, or 2 "
        "where something failed.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser
