"""`lrtrain scaling`: plan an isoFLOP grid, train it, and fit scaling laws to its losses."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrtrain.commands.arguments import Arguments
from lrtrain.errors import UserError

if TYPE_CHECKING:
    from lrtrain.scaling.plan import Plan
    from lrtrain.scaling.training import Trained

POINTS = "points.csv"
COUNTED = {"all": "parameters", "non-embedding": "non_embedding"}


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
    plan.add_argument("grid", type=Path, help="grid file, such as configs/scaling/tiny.yaml")
    plan.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of the plan and its fit")
    plan.add_argument("--config", action="append", metavar="FILE", help="recipe, and overlays: instead of the grid's")
    run = commands.add_parser("run", allow_abbrev=False, help="train every point; goes on where it stopped")
    run.add_argument("folder", type=Path, help="folder of the plan")
    run.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default runs)")
    run.add_argument("--jobs", type=int, default=1, help="points trained at a time (default 1)")
    run.add_argument("--threads", type=int, default=1, help="threads of a run (default 1)")
    run.add_argument("--only", nargs="+", metavar="POINT", help="train these points alone, as on one of many machines")
    fit = commands.add_parser("fit", allow_abbrev=False, help="fit the laws; writes fit.json and fit.png")
    fit.add_argument("points", type=Path, help="folder of the plan, or a CSV with budget, parameters, tokens, loss")
    fit.add_argument("--parameters", choices=COUNTED, default="all", help="what counts as N (default all)")
    fit.add_argument("--confidence", type=float, default=0.95, help="of the intervals (default 0.95)")
    fit.add_argument("--resamples", type=int, default=1000, help="of the bootstrap (default 1000)")
    fit.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    fit.add_argument("--out", type=Path, metavar="FOLDER", help="where the fit goes (default: beside the points)")
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.command != "plan":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return {"plan": _plan, "run": _run, "fit": _fit}[arguments.command](arguments, rest)


def _plan(arguments: argparse.Namespace, rest: list[str]) -> int:
    from dataclasses import replace

    import yaml

    from lrtrain.scaling.grid import load_grid, points_of, table
    from lrtrain.scaling.plan import Plan

    grid = load_grid(arguments.grid)
    overrides = {**grid.overrides, **dict(_overrides(rest))}
    grid = replace(grid, configs=tuple(arguments.config or grid.configs), overrides=overrides)

    from lrtrain.commands.checked import checked

    recipe = yaml.safe_load(checked([Path(config) for config in grid.configs], overrides))
    data, trainer = recipe["data"], recipe["trainer"]
    devices = _devices(trainer["devices"])
    micro_batches = trainer["accumulate_grad_batches"]
    tokens_per_step = data["batch_size"] * data["block_size"] * micro_batches * devices * trainer["num_nodes"]
    lr = None
    if grid.lr == "searched":
        lr = recipe["model"]["optimizers"]["hidden"].get("init_args", {}).get("lr")
        if not isinstance(lr, float | int):
            raise UserError(
                f"{arguments.grid}: lr is searched and the recipe has no model.optimizers.hidden.lr: set it"
            )
    points = points_of(grid, _sizes(grid, recipe), tokens_per_step)
    plan = Plan(
        name=arguments.out.resolve().name,
        configs=grid.configs,
        overrides={**overrides, "trainer.devices": devices},
        tokens_per_step=tokens_per_step,
        micro_batches=micro_batches,
        log_every=trainer["log_every_n_steps"] or 1,
        lr=lr,
        seeds=grid.seeds,
        points=tuple(points),
    )
    plan.save(arguments.out)
    print(table(points))
    print(f"{tokens_per_step:,} tokens a step; train with: lrtrain scaling run {arguments.out}")
    return 0


def _run(arguments: argparse.Namespace, rest: list[str]) -> int:
    from lrtrain.scaling.plan import Plan
    from lrtrain.scaling.points import write_points
    from lrtrain.scaling.training import train_points

    for name in ("jobs", "threads"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: give at least 1")
    plan = Plan.load(arguments.folder)
    chosen = _chosen(plan, arguments.only)
    print(f"{len(chosen)} points, {len(plan.seeds)} seeds each, runs in {arguments.runs}", flush=True)
    trained = train_points(plan, chosen, arguments.runs, arguments.jobs, arguments.threads, _say)
    finished = [item.row() for item in trained if item.finished]
    unfinished = [item for item in trained if item.loss is None]
    if arguments.only is None:
        write_points(arguments.folder / POINTS, finished)
        print(f"wrote {arguments.folder / POINTS}: {len(finished)} of {len(trained)} runs have a loss")
    if unfinished:
        names = ", ".join(f"{item.point.name} seed {item.seed}" for item in unfinished)
        raise UserError(f"{len(unfinished)} runs failed ({names}): mend what the lines above say and run again")
    if arguments.only is None:
        print(f"fit with: lrtrain scaling fit {arguments.folder}")
    return 0


def _fit(arguments: argparse.Namespace, rest: list[str]) -> int:
    from lrtrain.data.manifest import write_atomically
    from lrtrain.scaling.figure import draw
    from lrtrain.scaling.fit import fit
    from lrtrain.scaling.parametric import fit_parametric
    from lrtrain.scaling.points import read_points
    from lrtrain.scaling.report import lines, summary

    if not 0 < arguments.confidence < 1:
        raise UserError(f"--confidence {arguments.confidence}: give a share between 0 and 1, such as 0.95")
    if arguments.resamples < 100:
        raise UserError(f"--resamples {arguments.resamples}: an interval needs at least 100")
    if arguments.seed < 0:
        raise UserError(f"--seed {arguments.seed}: give at least 0")
    file = arguments.points / POINTS if arguments.points.is_dir() else arguments.points
    points = read_points(file, COUNTED[arguments.parameters])
    iso = fit(points, arguments.resamples, arguments.seed)
    parametric = fit_parametric(points, arguments.resamples, arguments.seed)
    print("\n".join(lines(iso, parametric, arguments.confidence)))
    folder = arguments.out or file.parent
    content = {
        "points": str(file),
        "parameters": arguments.parameters,
        "resamples": arguments.resamples,
        "seed": arguments.seed,
        **summary(iso, parametric, arguments.confidence),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "fit.json", (json.dumps(content, indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}; name another folder with --out") from error
    draw(iso, f"{arguments.parameters} parameters", arguments.confidence, folder / "fit.png")
    print(f"wrote {folder / 'fit.json'} and {folder / 'fit.png'}")
    return 0


def _overrides(rest: list[str]) -> Iterator[tuple[str, str]]:
    """The settings among the arguments, --key=value or --key value."""
    from lrtrain.scaling.grid import check_override

    pending = iter(rest)
    for argument in pending:
        flag, equals, value = argument.partition("=")
        if not flag.startswith("--"):
            raise UserError(f"{argument}: stands alone; a setting is --key value, as in --data.block_size 64")
        if not equals and (value := next(pending, "")) == "":
            raise UserError(f"{flag}: lacks its value, as in --data.block_size 64")
        key = flag.removeprefix("--")
        check_override(key, flag)
        yield key, value


def _sizes(grid: Any, recipe: dict[str, Any]) -> dict[Any, Any]:
    """What every dial's decoder costs, counted without memory."""
    import torch

    from lrtrain.commands.generate import build_decoder
    from lrtrain.scaling.shapes import size_of

    sizes = {}
    decoder = recipe["model"]["decoder"]
    for shape in grid.shapes():
        own = {key.removeprefix("model.decoder."): value for key, value in shape.settings.items()}
        try:
            with torch.device("meta"):
                built = build_decoder({**decoder, "init_args": {**decoder["init_args"], **own}})
        except ValueError as error:
            raise UserError(f"dial {shape.dial} with model.decoder of the recipe: {error}") from error
        sizes[shape] = size_of(built, recipe["data"]["block_size"])
    return sizes


def _devices(value: Any) -> int:
    """`trainer.devices` as a number; `auto` plans for one."""
    if isinstance(value, list | tuple):
        return len(value)
    if value in ("auto", None):
        return 1
    if not str(value).isdecimal() or int(value) < 1:
        raise UserError(f"trainer.devices is {value}: a plan needs the number of devices")
    return int(value)


def _chosen(plan: "Plan", only: list[str] | None) -> list[Any]:
    """The points that are asked for. Raises UserError, with the nearest names, for one that the plan does not have."""
    import difflib

    known = {point.name: point for point in plan.points}
    for name in only or []:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or list(known)[:8]
            raise UserError(f"--only {name}: the plan has no such point; there are {', '.join(near)}")
    return [known[name] for name in dict.fromkeys(only or known)]


def _say(trained: "list[Trained]") -> None:
    for item in trained:
        rate = "" if item.lr is None else f"  lr {item.lr:g}"
        result = f"loss {item.loss:.4f}" if item.finished else f"no loss: {item.reason}"
        print(f"{item.point.name}  seed {item.seed}{rate}  {result}", flush=True)
