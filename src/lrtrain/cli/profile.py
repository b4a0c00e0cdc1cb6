"""`lrtrain profile`: where the time and the memory of a configuration's training steps go."""

from pathlib import Path

from lrtrain.cli.arguments import Arguments, announce
from lrtrain.config.settings import config_files, with_files


def main(argv: list[str]) -> int:
    """Trains some steps, prints a table of their parts, and what to change first."""
    parser = Arguments(
        prog="lrtrain profile",
        description="Train fifteen steps of a configuration, and tell where the time and the memory of ten of them go, "
        "and what to change first. No run is left behind; --config and overrides are those of fit.",
        epilog="Any other argument belongs to the configuration: --config FILE, --trainer.precision bf16-mixed, …",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="of the trace and the figures [<runs>/<name>/profile]"
    )
    options, rest = parser.parse_known_args(argv)
    rest = with_files(rest)
    announce(f"profile: {' + '.join(config_files(rest)) or 'no --config'}; importing torch and lightning …")

    from lrtrain.cli.fit import hush
    from lrtrain.runtime.allocator import keep_freed_memory
    from lrtrain.studies.profile.profile_run import profile

    hush()
    keep_freed_memory()
    print(profile(rest, options.out))
    return 0
