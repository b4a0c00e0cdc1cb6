"""A planned grid as a file: what is trained, point by point."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from lrtrain.config.typed_file import mapping, refused, typed
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import write_atomically, writing
from lrtrain.runtime.yaml_file import content_of
from lrtrain.studies.scaling.grid import Point
from lrtrain.studies.scaling.shapes import Shape

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
        content = {**mapping(content_of(file), file)}
        points = content.pop("points", None)
        if not isinstance(points, list):
            raise refused(file, "", "points", "a list of points", points)
        return typed(cls, content, file, points=tuple(_point(p, file, f"points[{n}]") for n, p in enumerate(points)))


def _point(content: Any, file: Path, where: str) -> Point:
    values = {**mapping(content, file, where)}
    shape = typed(Shape, values.pop("shape", {}), file, f"{where}.shape")
    return typed(Point, values, file, where, shape=shape)
