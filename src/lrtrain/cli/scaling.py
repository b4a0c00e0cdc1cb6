"""`lrtrain scaling`: plan an isoFLOP grid, train it, and fit scaling laws to its losses."""

import argparse
from functools import partial
from pathlib import Path

from lrtrain.cli.arguments import Arguments, positive, settings
from lrtrain.config.recipes import find
from lrtrain.runtime.errors import UserError


def main(argv: list[str]) -> int:
    """Plans, trains or fits. Raises UserError for a mistake."""
    parser = Arguments(prog="lrtrain scaling", description="Scaling laws from runs of equal training FLOPs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{plan,run,fit}")
    plan = commands.add_parser(
        "plan",
        allow_abbrev=False,
        help="write the grid: sizes by budgets",
        description="Writes plan.yaml: sizes from one dial, at every budget as many steps as it pays. Further "
        "--key value, after the grid file, override the recipe.",
    )
    plan.add_argument("grid", type=partial(find, "scaling_laws"), help="grid file, or a shipped one: tiny, paper")
    plan.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of the plan and its fit")
    plan.add_argument(
        "--config",
        type=partial(find, ""),
        action="append",
        metavar="FILE",
        help="recipe, and overlays: instead of the grid's",
    )
    run = commands.add_parser("run", allow_abbrev=False, help="train every point; goes on where it stopped")
    run.add_argument("folder", type=Path, help="folder of the plan")
    run.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default runs)")
    run.add_argument("--jobs", type=positive, default=1, help="points trained at a time (default 1)")
    run.add_argument("--threads", type=positive, default=1, help="threads of a run (default 1)")
    run.add_argument("--only", nargs="+", metavar="POINT", help="train these points alone, as on one of many machines")
    fit = commands.add_parser("fit", allow_abbrev=False, help="fit the laws; writes fit.json and fit.png")
    fit.add_argument("points", type=Path, help="folder of the plan, or a CSV with budget, parameters, tokens, loss")
    fit.add_argument("--parameters", choices=("all", "non-embedding"), default="all", help="what counts as N [all]")
    fit.add_argument("--confidence", type=float, default=0.95, help="of the intervals (default 0.95)")
    fit.add_argument("--resamples", type=int, default=1000, help="of the bootstrap (default 1000)")
    fit.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    fit.add_argument("--out", type=Path, metavar="FOLDER", help="where the fit goes (default: beside the points)")
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.command != "plan":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return {"plan": _plan, "run": _run, "fit": _fit}[arguments.command](arguments, rest)


def _plan(arguments: argparse.Namespace, rest: list[str]) -> int:
    from lrtrain.studies.scaling.grid import check_override, points_table
    from lrtrain.studies.scaling.stages import plan_grid

    overrides = settings(rest)
    for key in overrides:
        check_override(key, f"--{key}")
    plan = plan_grid(
        arguments.grid, arguments.out.resolve().name, [str(file) for file in arguments.config or ()], overrides
    )
    plan.save(arguments.out)
    print(points_table(plan.points))
    print(f"{plan.tokens_per_step:,} tokens a step; train with: lrtrain scaling run {arguments.out}")
    return 0


def _run(arguments: argparse.Namespace, rest: list[str]) -> int:
    from lrtrain.studies.scaling.stages import train_grid

    train_grid(arguments.folder, arguments.runs, arguments.jobs, arguments.threads, _say, arguments.only)
    if arguments.only is None:
        print(f"fit with: lrtrain scaling fit {arguments.folder}")
    return 0


def _fit(arguments: argparse.Namespace, rest: list[str]) -> int:
    from lrtrain.studies.scaling.stages import fit_laws

    if not 0 < arguments.confidence < 1:
        raise UserError(f"--confidence {arguments.confidence}: give a share between 0 and 1, such as 0.95")
    if arguments.resamples < 100:
        raise UserError(f"--resamples {arguments.resamples}: an interval needs at least 100")
    if arguments.seed < 0:
        raise UserError(f"--seed {arguments.seed}: give at least 0")
    of = arguments
    fit = fit_laws(of.points, print, of.parameters, of.confidence, of.resamples, of.seed, of.out)
    print(f"verdict: {fit['verdict']}")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)
