"""A planned grid as a file: what is trained, point by point."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import write_atomically
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
        text = yaml.safe_dump(_plain(asdict(self)), sort_keys=False)
        try:
            if file.exists() and file.read_text(encoding="utf-8") != text:
                raise UserError(f"{file} holds another plan: remove it, or name another folder with --out")
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(file, text.encode())
        except OSError as error:
            raise UserError(f"cannot write {file}: {error.strerror}; name a folder that can be written") from error

    @classmethod
    def load(cls, folder: Path) -> "Plan":
        """Reads `plan.yaml`. Raises UserError if it is absent or damaged."""
        file = folder / PLAN
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror}): make it with lrtrain scaling plan") from error
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"{file} is not valid YAML: plan again into another folder") from error
        try:
            points = tuple(Point(**{**point, "shape": Shape(**point["shape"])}) for point in content["points"])
            tuples = {key: tuple(content[key]) for key in ("configs", "seeds")}
            return cls(**{**content, **tuples, "points": points})
        except (TypeError, KeyError) as error:
            raise UserError(f"{file} is not a plan of lrtrain scaling plan ({error}): plan again") from error


def _plain(value: Any) -> Any:
    """Tuples as lists, all the way down, for YAML."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
