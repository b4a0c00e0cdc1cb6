"""The variants of an experiment as jobs. What is the same in two experiments is one job, trained once."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.yaml_file import content_of
from lrtrain.studies.experiments.definition import Definition, Variant
from lrtrain.studies.jobs.job import Job, Outcome

if TYPE_CHECKING:  # it brings torch, which a heading needs not wait for
    from lrtrain.studies.plan.counted import Cost

LR = "model.optimizers.hidden.lr"
STEPS = "trainer.max_steps"
TELEMETRY = "trainer.callbacks+"  # beside the callbacks that an overlay brings
LOGGER = "lrtrain.tracking.logger.MLflowLogger"

Count = Callable[[Sequence[Path], Mapping[str, Any]], "Cost"]
"""(configs, settings) -> what they take, without allocating it."""


@dataclass(frozen=True)
class Arm:
    """A variant with all that its runs have in common: everything but learning rate and seed."""

    variant: Variant
    name: str
    configs: tuple[Path, ...]
    settings: dict[str, Any]
    cost: "Cost"

    def configuration(self, lr: float, seed: int) -> dict[str, Any]:
        """The settings of one run, by dotted key."""
        return {**{key: with_rate(value, lr) for key, value in self.settings.items()}, "seed_everything": seed}

    def job(self, lr: float, seed: int, runs: Path, threads: int) -> Job:
        """One run, `<runs>/<arm>-lr<lr>-s<seed>`; in MLflow the arm is the experiment."""
        logger = {"class_path": LOGGER, "init_args": {"experiment": self.name, "root": str(runs)}}
        return Job(
            name=f"{self.name}-lr{lr:g}-s{seed}",
            configs=self.configs,
            settings={**self.configuration(lr, seed), "trainer.logger": logger},
            runs=runs,
            threads=threads,
            tags={"lrtrain.lr": f"{lr:g}"},
        )


@dataclass(frozen=True)
class Trained:
    """What came of an arm.

    Attributes:
        arm: The arm.
        rates: Learning rate -> held-out loss with the first seed; infinite where it diverged or failed.
        lr: The best of them.
        outcomes: One a seed at that rate; the first seed's alone where no rate of a search gave a loss.
    """

    arm: Arm
    rates: dict[float, float]
    lr: float
    outcomes: list[Outcome]


def arms_of(definition: Definition, count: Count) -> list[Arm]:
    """The arms of an experiment in its order.

    Args:
        definition: The experiment at a scale.
        count: Tells what a configuration takes.

    Raises:
        UserError: two variants are the same, or a run would end between two validations.
    """
    arms: dict[str, Arm] = {}
    for variant in sorted(definition.variants, key=lambda variant: bool(variant.equal_flops)):
        arms[variant.name] = _arm(definition, variant, count, arms)
    ordered = [arms[variant.name] for variant in definition.variants]
    for index, arm in enumerate(ordered):
        for other in ordered[:index]:
            if arm.name == other.name:
                raise UserError(
                    f"{definition.name}: the variants {other.variant.name} and {arm.variant.name} are the same: "
                    "leave one out"
                )
    return ordered


def kept(arm: Arm, lr: float) -> Arm:
    """An arm of its own whose runs, at one learning rate, are to keep their last checkpoint."""
    variant = replace(arm.variant, lr=lr, search=False)
    return replace(arm, variant=variant, name=f"{arm.name}-kept", settings={**arm.settings, "checkpoints.keep": 1})


def with_rate(value: Any, lr: float) -> Any:
    """A setting with the learning rate in the place of `lr` and of `lr * 0.04`, anywhere inside."""
    if isinstance(value, dict):
        return {key: with_rate(item, lr) for key, item in value.items()}
    if isinstance(value, list):
        return [with_rate(item, lr) for item in value]
    match = re.fullmatch(r"lr(?: \* ([0-9.e-]+))?", value) if isinstance(value, str) else None
    return value if match is None else float(f"{lr * float(match[1] or 1):.6g}")


def _arm(definition: Definition, variant: Variant, count: Count, arms: Mapping[str, Arm]) -> Arm:
    scale = definition.scale
    configs = (*scale.configs, *variant.overlays, *scale.overlays)
    settings = {**scale.settings, **variant.settings}
    if scale.telemetry:
        telemetry = {"every_n_steps": scale.telemetry}
        settings[TELEMETRY] = {
            "class_path": "lrtrain.training.SpectralTelemetry",
            "init_args": telemetry,
        }
    if with_rate(settings, 1.0) == settings:
        settings[LR] = "lr"
    cost = count(configs, with_rate(settings, variant.lr))
    if variant.equal_flops:
        other = arms[variant.equal_flops].cost
        steps = other.steps * other.tokens * other.flops / (cost.flops * cost.tokens)
        settings[STEPS] = max(1, round(steps / cost.every)) * cost.every
        cost = replace(cost, steps=settings[STEPS])
    if cost.steps % cost.every:
        raise UserError(
            f"{definition.name}: {variant.name}: {cost.steps} steps with a validation every {cost.every}: the last "
            "step's loss would be missing; set trainer.val_check_interval"
        )
    content = {"configs": [content_of(path) for path in configs], "settings": settings}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]
    stems = [path.stem for path in variant.overlays] or [scale.configs[0].stem]
    return Arm(variant, "-".join(filter(None, [scale.name, *stems, digest])), configs, settings, cost)
