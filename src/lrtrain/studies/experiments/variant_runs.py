"""The variants of an experiment as runs. What is the same in two experiments is one run, trained once."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.yaml_file import content_of
from lrtrain.studies.experiments.definition import Definition, Variant
from lrtrain.studies.jobs.best_rate import Best
from lrtrain.studies.jobs.job import Job, Outcome, Resources
from lrtrain.studies.jobs.launch import LOGGER

if TYPE_CHECKING:  # it brings torch, which a heading needs not wait for
    from lrtrain.studies.plan.counted import Cost

LR = "model.optimizers.hidden.lr"
STEPS = "trainer.max_steps"
TELEMETRY = "trainer.callbacks+"  # beside the callbacks that an overlay brings


@dataclass(frozen=True)
class VariantRuns:
    """What the runs of a variant have in common: everything but learning rate and seed."""

    variant: Variant
    name: str
    configs: tuple[Path, ...]
    settings: dict[str, Any]
    cost: "Cost"

    def configuration(self, lr: float, seed: int) -> dict[str, Any]:
        """The settings of one run, by dotted key."""
        return {**{key: with_rate(value, lr) for key, value in self.settings.items()}, "seed_everything": seed}

    def job(self, lr: float, seed: int, resources: Resources) -> Job:
        """One run, `<runs>/<name>-lr<lr>-s<seed>`; in MLflow the name is the group's."""
        logger = {"class_path": LOGGER, "init_args": {"group": self.name, "root": str(resources.runs)}}
        return Job(
            name=f"{self.name}-lr{lr:g}-s{seed}",
            configs=self.configs,
            settings={**self.configuration(lr, seed), "trainer.logger": logger},
            runs=resources.runs,
            threads=resources.threads,
            records=resources.records,
            tags={"lrtrain.lr": f"{lr:g}"},
        )

    def keeping_checkpoints(self, lr: float) -> "VariantRuns":
        """The same at one learning rate, as runs of their own that are to keep their last checkpoint."""
        variant = replace(self.variant, lr=lr, search=False)
        settings = {**self.settings, "checkpoints.keep": 1}
        return replace(self, variant=variant, name=f"{self.name}-kept", settings=settings)


Trained: TypeAlias = tuple[VariantRuns, Best[Outcome]]
"""A variant with what came of it at its best learning rate."""


def variant_runs(definition: Definition) -> list[VariantRuns]:
    """The runs of each variant of an experiment at a scale, in its order.

    Raises:
        UserError: two variants are the same, or a run would end between two validations.
    """
    found: dict[str, VariantRuns] = {}
    for variant in sorted(definition.variants, key=lambda variant: bool(variant.equal_flops)):
        runs = _runs(definition, variant, found)
        for other in found.values():
            if runs.name == other.name:
                pair = f"{other.variant.name} and {variant.name}"
                raise UserError(f"{definition.name}: the variants {pair} are the same: leave one out")
        found[variant.name] = runs
    return [found[variant.name] for variant in definition.variants]


def with_rate(value: Any, lr: float) -> Any:
    """A setting with the learning rate in the place of `lr` and of `lr * 0.04`, anywhere inside."""
    return _filled(value, "lr", lambda factor: float(f"{lr * factor:.6g}"))


def with_size(value: Any, size: float) -> Any:
    """A setting with a size in the place of `size`, `size * 3` and `size / 32`; whole where that is whole."""

    def sized(factor: float) -> float:
        found = float(f"{size * factor:.6g}")
        return int(found) if found.is_integer() else found

    return _filled(value, "size", sized)


def _filled(value: Any, name: str, number: Callable[[float], float]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item, name, number) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, name, number) for item in value]
    match = re.fullmatch(rf"{name}(?: ([*/]) ([0-9.e-]+))?", value) if isinstance(value, str) else None
    if match is None:
        return value
    factor = float(match[2] or 1)
    return number(1 / factor if match[1] == "/" else factor)


def _runs(definition: Definition, variant: Variant, others: Mapping[str, VariantRuns]) -> VariantRuns:
    scale = definition.scale
    configs = (*scale.configs, *variant.overlays, *scale.overlays)
    settings = {**scale.settings, **variant.settings}
    if scale.telemetry:
        every = {"every_n_steps": scale.telemetry}
        settings[TELEMETRY] = {"class_path": "lrtrain.training.SpectralTelemetry", "init_args": every}
    if with_rate(settings, 1.0) == settings:
        settings[LR] = "lr"
    from lrtrain.studies.plan.counted import counted  # here: it brings torch

    cost = counted(configs, with_rate(settings, variant.lr))
    if variant.equal_flops:
        other = others[variant.equal_flops].cost
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
    return VariantRuns(variant, "-".join(filter(None, [scale.name, *stems, digest])), configs, settings, cost)
