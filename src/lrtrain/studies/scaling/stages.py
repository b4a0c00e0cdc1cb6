"""The three stages of a scaling law: plan the grid, train its points, fit the laws."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from lrtrain.config.checked import checked
from lrtrain.config.own_data import data_sizes
from lrtrain.config.trained_model import build_decoder
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import write_atomically, writing
from lrtrain.runtime.hints import nearest
from lrtrain.studies.scaling.fit_report import lines, summary
from lrtrain.studies.scaling.grid import Grid, Point, load_grid, points_of
from lrtrain.studies.scaling.isoflop_figure import draw
from lrtrain.studies.scaling.isoflop_fit import fit
from lrtrain.studies.scaling.parametric import fit_parametric
from lrtrain.studies.scaling.planned_grid import Plan
from lrtrain.studies.scaling.point_runs import Trained, train_points
from lrtrain.studies.scaling.points import read_points, write_points
from lrtrain.studies.scaling.shapes import Shape, Size, size_of

POINTS = "points.csv"
COUNTED = {"all": "parameters", "non-embedding": "non_embedding"}
"""What counts as N -> the column of `points.csv`."""


def plan_grid(file: Path, name: str, configs: Sequence[str] = (), overrides: Mapping[str, Any] | None = None) -> Plan:
    """The runs of a grid file: sizes from its dials, at every budget as many steps as it pays.

    Args:
        file: The grid.
        name: Of the plan.
        configs: Recipe and overlays, instead of the grid's.
        overrides: Further keys of the recipe, stronger than the grid's.

    Raises:
        UserError: what the grid or `lrtrain fit` would refuse.
    """
    grid = load_grid(file)
    overrides = {**grid.overrides, **(overrides or {})}
    files = [Path(config) for config in configs] or grid.configs
    recipe = yaml.safe_load(checked(files, overrides))
    trainer = recipe["trainer"]
    block_size, batch_size = data_sizes(recipe["data"])
    devices = _devices(trainer["devices"])
    micro_batches = trainer["accumulate_grad_batches"]
    tokens_per_step = batch_size * block_size * micro_batches * devices * trainer["num_nodes"]
    lr = None
    if grid.lr == "searched":
        lr = recipe["model"]["optimizers"]["hidden"].get("init_args", {}).get("lr")
        if not isinstance(lr, float | int):
            raise UserError(f"{file}: lr is searched and the recipe has no model.optimizers.hidden.lr: set it")
    return Plan(
        name=name,
        configs=tuple(map(str, files)),
        overrides={**overrides, "trainer.devices": devices},
        tokens_per_step=tokens_per_step,
        micro_batches=micro_batches,
        log_every=trainer["log_every_n_steps"] or 1,
        lr=lr,
        seeds=grid.seeds,
        points=tuple(points_of(grid, _sizes(grid, recipe, block_size), tokens_per_step)),
    )


def train_grid(
    folder: Path,
    runs: Path,
    jobs: int,
    threads: int,
    tell: Callable[[str], None],
    only: Sequence[str] | None = None,
) -> None:
    """Trains the points of `<folder>/plan.yaml` that have no loss yet, and writes `points.csv` once all were asked for.

    Raises:
        UserError: the plan has no such point, or some runs failed.
    """
    plan = Plan.load(folder)
    chosen = _chosen(plan, only)
    tell(f"{len(chosen)} points, {len(plan.seeds)} seeds each, runs in {runs}")

    def say(items: list[Trained]) -> None:
        for item in items:
            rate = "" if item.lr is None else f"  lr {item.lr:g}"
            result = f"loss {item.loss:.4f}" if item.finished else f"no loss: {item.reason}"
            tell(f"{item.point.name}  seed {item.seed}{rate}  {result}")

    trained = train_points(plan, chosen, runs, jobs, threads, say)
    if only is None:
        finished = [item.row() for item in trained if item.finished]
        write_points(folder / POINTS, finished)
        tell(f"wrote {folder / POINTS}: {len(finished)} of {len(trained)} runs have a loss")
    if failed := [item for item in trained if item.loss is None]:
        names = ", ".join(f"{item.point.name} seed {item.seed}" for item in failed)
        raise UserError(f"{len(failed)} runs failed ({names}): mend what the lines above say and run again")


def fit_laws(
    points: Path,
    tell: Callable[[str], None],
    parameters: str = "all",
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    out: Path | None = None,
) -> dict[str, Any]:
    """Fits the laws to `points.csv`, writes `fit.json` and `fit.png` beside it or into `out`, and returns the former.

    Args:
        points: A CSV, or the folder of a plan.
        tell: Takes the lines of the report.
        parameters: What counts as N, a key of `COUNTED`.
        confidence: Of the intervals.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
        out: Folder of both files.

    Raises:
        UserError: the points tell no law, or a file cannot be written.
    """
    file = points / POINTS if points.is_dir() else points
    found = read_points(file, COUNTED[parameters])
    iso = fit(found, resamples, seed)
    parametric = fit_parametric(found, resamples, seed)
    tell("\n".join(lines(iso, parametric, confidence)))
    folder = out or file.parent
    content = {
        "points": str(file),
        "parameters": parameters,
        "resamples": resamples,
        "seed": seed,
        **summary(iso, parametric, confidence),
    }
    with writing(f"cannot write into {folder}", "name another folder with --out"):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "fit.json", (json.dumps(content, indent=2) + "\n").encode())
    draw(iso, f"{parameters} parameters", confidence, folder / "fit.png")
    tell(f"wrote {folder / 'fit.json'} and {folder / 'fit.png'}")
    return content


def _sizes(grid: Grid, recipe: dict[str, Any], block_size: int) -> dict[Shape, Size]:
    """What every dial's decoder costs, counted without memory."""
    sizes = {}
    decoder = recipe["model"]["decoder"]
    for shape in grid.shapes():
        own = {key.removeprefix("model.decoder."): value for key, value in shape.settings.items()}
        try:
            with torch.device("meta"):
                built = build_decoder({**decoder, "init_args": {**decoder["init_args"], **own}})
        except ValueError as error:
            raise UserError(f"dial {shape.dial} with model.decoder of the recipe: {error}") from error
        sizes[shape] = size_of(built, block_size)
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


def _chosen(plan: Plan, only: Sequence[str] | None) -> list[Point]:
    """The points that are asked for. Raises UserError, with the nearest names, for one that the plan does not have."""
    known = {point.name: point for point in plan.points}
    for name in only or []:
        if name not in known:
            raise UserError(f"--only {name}: the plan has no such point; {nearest(name, known)}")
    return [known[name] for name in dict.fromkeys(only or known)]
