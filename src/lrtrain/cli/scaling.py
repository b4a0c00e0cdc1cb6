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
        description="Writes plan.yaml: sizes by their indices, at every budget as many steps as it pays. Further "
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
    run.add_argument(
        "--only",
        nargs="+",
        action="extend",
        metavar="POINT",
        help="train these points alone, as on one of many machines",
    )
    fit = commands.add_parser("fit", allow_abbrev=False, help="fit the laws; writes fit.json and fit.png")
    fit.add_argument("points", type=Path, help="folder of the plan, or a CSV with budget, parameters, tokens, loss")
    fit.add_argument("--parameters", choices=("all", "non-embedding"), default="all", help="what counts as N [all]")
    fit.add_argument("--resamples", type=int, default=1000, help="of the bootstrap (default 1000)")
    fit.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    fit.add_argument("--out", type=Path, metavar="FOLDER", help="where the fit goes (default: beside the points)")
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.command != "plan":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if arguments.command == "plan":
        _plan(arguments, settings(rest))
    else:
        {"run": _run, "fit": _fit}[arguments.command](arguments)
    return 0


def _plan(of: argparse.Namespace, overrides: dict[str, str]) -> None:
    from lrtrain.studies.scaling.grid import check_override, points_table
    from lrtrain.studies.scaling.planned_grid import plan_grid

    for key in overrides:
        check_override(key, f"--{key}")
    plan = plan_grid(of.grid, of.out.resolve().name, of.config or (), overrides)
    plan.save(of.out)
    print(points_table(plan.points))
    print(f"{plan.tokens_per_step:,} tokens a step; train with: lrtrain scaling run {of.out}")


def _run(of: argparse.Namespace) -> None:
    from lrtrain.studies.jobs.job import Resources
    from lrtrain.studies.scaling.point_runs import train_grid

    train_grid(of.folder, Resources(of.runs, of.jobs, of.threads), partial(print, flush=True), of.only)
    if of.only is None:
        print(f"fit with: lrtrain scaling fit {of.folder}")


def _fit(of: argparse.Namespace) -> None:
    from lrtrain.studies.scaling.fit_report import fit_laws

    if of.resamples < 100:
        raise UserError(f"--resamples {of.resamples}: an interval needs at least 100")
    if of.seed < 0:
        raise UserError(f"--seed {of.seed}: give at least 0")
    fit = fit_laws(of.points, print, of.parameters, of.resamples, of.seed, of.out)
    print(f"verdict: {fit['verdict']}")
