"""`lrtrain sweep`: trains the points of a search space and writes the best one's YAML."""

from functools import partial
from pathlib import Path

from lrtrain.cli.arguments import Arguments, positive, settings
from lrtrain.config.recipes import find


def main(argv: list[str]) -> int:
    """Checks the whole space, works at its study until nothing is left, and tells the best trials."""
    parser = Arguments(
        prog="lrtrain sweep",
        allow_abbrev=False,
        description="Trains the points of a search space, each in a process of its own, and writes the best YAML. The "
        "same command goes on where it stopped; on several machines with one --storage it shares the work. Further "
        "flags, as --trainer.max_steps 100, are settings of lrtrain fit for all trials.",
    )
    parser.add_argument(
        "--space",
        type=partial(find, "sweeps"),
        required=True,
        help="YAML: what is varied, over which configuration, how",
    )
    parser.add_argument(
        "--config", type=partial(find, ""), action="append", help="recipe, and overlays: instead of the space's"
    )
    parser.add_argument("--study", help="name of the study (default: the space file's)")
    parser.add_argument("--storage", help="database URL of the studies (default: sqlite, <runs>/sweeps.db)")
    parser.add_argument("--trials", type=positive, help="number of points, instead of the space's; may be raised later")
    parser.add_argument("--jobs", type=positive, default=1, help="trials at a time on this machine (default 1)")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads of one trial (default 1)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default runs)")
    options, flags = parser.parse_known_args(argv)

    from lrtrain.studies.jobs.job import Resources
    from lrtrain.studies.sweep.space import read_space
    from lrtrain.studies.sweep.sweeping import sweep

    space = read_space(options.space, options.trials, options.config, settings(flags))
    resources = Resources(options.runs, options.jobs, options.threads)
    sweep(space, options.study or space.path.stem, options.storage, resources)
    return 0
