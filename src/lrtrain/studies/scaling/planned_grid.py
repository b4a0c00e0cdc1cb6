"""Planning a grid: what is trained, point by point, and the file that says it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from lrtrain.config.own_data import data_sizes
from lrtrain.config.train_parser import resolve_config
from lrtrain.config.trained_model import build_decoder
from lrtrain.config.typed_file import typed
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import write_atomically, writing
from lrtrain.runtime.yaml_file import content_of
from lrtrain.studies.scaling.grid import Grid, Point, Shape, Size, load_grid, points_of, shape_of, size_of

PLAN = "plan.yaml"
LR = "model.optimizers.hidden.lr"
"""The learning rate that is searched: that of the projections."""


@dataclass(frozen=True)
class Plan:
    """A grid of runs.

    Args:
        name: Of the plan, the beginning of its runs' names.
        configs: The recipe and its overlays.
        overrides: Further keys of the configuration, the same for all points.
        tokens_per_step: Tokens of one optimizer step over all devices.
        micro_batches: Of one optimizer step.
        log_every: Steps between the recipe's logged points.
        lr: The recipe's learning rate of the projections, from which every point's is searched; null takes the
            recipe's rates as they are.
        seeds: Every point is trained once with each.
        points: What to train.
    """

    name: str
    configs: tuple[str, ...]
    overrides: dict[str, Any]
    tokens_per_step: int
    micro_batches: int
    log_every: int
    lr: float | None
    seeds: tuple[int, ...]
    points: tuple[Point, ...]

    def configuration(self, point: Point, seed: int, lr: float | None) -> dict[str, Any]:
        """The settings of one run, by dotted key.

        The last step is logged, whatever the recipe's interval, and validation happens once, after it.
        """
        every = max(k for k in range(1, self.log_every + 1) if point.steps % k == 0)
        return {
            **self.overrides,
            **point.shape.settings,
            "trainer.max_steps": point.steps,
            "trainer.val_check_interval": point.steps * self.micro_batches,
            "trainer.check_val_every_n_epoch": None,
            "trainer.log_every_n_steps": every,
            "seed_everything": seed,
            **({} if lr is None else {LR: lr}),
        }

    def save(self, folder: Path) -> None:
        """Writes `plan.yaml`. Raises UserError if the folder holds another plan or cannot be written."""
        file = folder / PLAN
        text = yaml.safe_dump(json.loads(json.dumps(asdict(self), default=str)), sort_keys=False)
        with writing(f"cannot write {file}", "name a folder that can be written"):
            if file.exists() and file.read_text(encoding="utf-8") != text:
                raise UserError(f"{file} holds another plan: remove it, or name another folder with --out")
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(file, text.encode())

    @classmethod
    def load(cls, folder: Path) -> "Plan":
        """Reads `plan.yaml`. Raises UserError if it is absent or damaged."""
        file = folder / PLAN
        if not file.is_file():
            raise UserError(f"{file} cannot be read: make it with lrtrain scaling plan")
        return typed(cls, content_of(file), file)


def plan_grid(file: Path, name: str, configs: Sequence[Path] = (), overrides: Mapping[str, Any] | None = None) -> Plan:
    """The runs of a grid file: sizes from its size_indices, at every budget as many steps as it pays.

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
    files = configs or grid.configs
    recipe = yaml.safe_load(resolve_config(files, overrides))
    trainer = recipe["trainer"]
    block_size, batch_size = data_sizes(recipe["data"])
    devices, micro_batches = _devices(trainer["devices"]), trainer["accumulate_grad_batches"]
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


def _sizes(grid: Grid, recipe: dict[str, Any], block_size: int) -> dict[Shape, Size]:
    """What the decoder of every size index costs, counted without memory."""
    sizes = {}
    decoder = recipe["model"]["decoder"]
    for shape in (shape_of(index, grid.head_width) for index in grid.size_indices):
        own = {key.removeprefix("model.decoder."): value for key, value in shape.settings.items()}
        try:
            with torch.device("meta"):
                built = build_decoder({**decoder, "init_args": {**decoder["init_args"], **own}})
        except ValueError as error:
            raise UserError(f"size index {shape.size_index} with model.decoder of the recipe: {error}") from error
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
