"""`lrtrain experiment`: figures and tables, the papers' or a user's own, trained, drawn, and judged."""

import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path

from lrtrain.cli.arguments import Arguments, positive
from lrtrain.config.recipes import find, names
from lrtrain.runtime.errors import UserError


def main(argv: list[str]) -> int:
    """Lists the experiments, plans them, or runs them one after the other; one that ends in an error ends no other."""
    parser = Arguments(
        prog="lrtrain experiment",
        description="Runs a figure or table, of a paper or of your own: trains what has not been trained yet, then "
        "prints the table and a verdict, and writes figure.png and results.json into <runs>/experiments/. Without a "
        "name it lists those that are shipped.",
        allow_abbrev=False,
    )
    shipped = partial(find, "experiments")
    parser.add_argument("files", nargs="*", type=shipped, metavar="NAME", help="experiments, or files of your own")
    parser.add_argument("--all", action="store_true", help="all of the papers' figures and tables")
    parser.add_argument("--scale", help="how large, as tiny or paper of those that are shipped [the file's first]")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs [runs]")
    parser.add_argument(
        "--records", type=Path, metavar="FOLDER", help="of runs that ended elsewhere, read and added to"
    )
    parser.add_argument("--jobs", type=positive, default=1, help="runs trained at a time [1]")
    parser.add_argument("--threads", type=positive, default=1, help="threads of a run [1]")
    parser.add_argument("--seeds", type=positive, metavar="N", help="seeds 0 … N − 1, but for isoflop [the file's]")
    parser.add_argument("--plan", action="store_true", help="print what each variant takes, and train nothing")
    options = parser.parse_args(argv)

    from lrtrain.studies.experiments.experiment_file import load
    from lrtrain.studies.experiments.run_experiment import listing, plan, run

    files = options.files if options.files and not options.all else [shipped(name) for name in names("experiments")]
    if not options.all and not options.files:
        print(listing([load(file) for file in files]))
        return 0
    chosen = [load(file, options.scale) for file in files if not options.all or load(file).source]
    if options.seeds is not None:
        chosen = [replace(one, scale=replace(one.scale, seeds=options.seeds)) for one in chosen]

    from lrtrain.studies.experiments.experiment_report import heading
    from lrtrain.studies.jobs.job import Resources

    resources = Resources(options.runs, options.jobs, options.threads, options.records)
    verdicts, errors, command = [], [], shlex.join(["lrtrain", "experiment", *argv])
    for index, definition in enumerate(chosen):
        print(("\n" if index else "") + heading(definition), flush=True)
        try:
            if options.plan:
                print(plan(definition))
                continue
            verdict = run(definition, resources, command)
        except UserError as error:
            if len(chosen) == 1:
                raise
            verdict = f"error: {error}"
            errors.append(definition.name)
            print(verdict, flush=True)
        verdicts.append(f"{definition.name}: {verdict}")
    if len(chosen) > 1 and verdicts:
        print("\n" + "\n".join(verdicts))
    if errors:
        raise UserError(f"{len(errors)} of {len(chosen)} experiments ended with an error: {', '.join(errors)}")
    return 0
