"""The experiment that converts a dense model, trained by it or before: `conversion` on it and its data."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from lrtrain.config.init_from import find_origin
from lrtrain.config.train_parser import fastest_precision, resolve_config
from lrtrain.config.trained_model import TrainedModel, newest_checkpoint, read_trained
from lrtrain.data import PrepareSpec, TokenDataModule
from lrtrain.runtime.errors import UserError
from lrtrain.studies.experiments import conversion
from lrtrain.studies.experiments.definition import Definition
from lrtrain.studies.experiments.experiment_report import Effort, Result, plan_table, unfinished, variants_as_data
from lrtrain.studies.experiments.trained_variants import checked_runs, train
from lrtrain.studies.experiments.variant_runs import VariantRuns, variant_runs
from lrtrain.studies.experiments.verdict import overall
from lrtrain.studies.plan.counted import planned


def plan(definition: Definition) -> str:
    """What the dense model takes, and how large the converted ones are."""
    (runs, *_) = of_variants = variant_runs(definition)
    _, model = planned(runs.configs, runs.configuration(runs.variant.lr, 0))
    lines = [plan_table(of_variants)]
    if definition.scale.options.pretrained:
        lines = [f"dense, as the recipe begins: {sum(p.numel() for p in model.decoder.parameters()):,} parameters"]
    for task in conversion.tasks(definition.scale.options)[1:]:
        size = "as many parameters as its ranks take"
        if task.rank is not None:
            size = f"{sum(p.numel() for p in conversion.convert(model.decoder, task).parameters()):,} parameters"
        lines.append(f"converted, {task.name}: {size}")
    return "\n".join(lines)


def run(definition: Definition, effort: Effort) -> Result:
    """Trains the dense model over seeds, or takes a trained one; converts each, and fine-tunes what comes of it.

    Raises:
        UserError: there is not one variant alone, the dense model did not finish, or a rank is too large.
    """
    if (number := len(definition.variants)) != 1:
        raise UserError(f"{definition.name}: variants: a conversion has one, the dense model, got {number}")
    if definition.scale.options.pretrained:
        begun = pretrained(*variant_runs(definition))
        return _converted(definition, effort, [begun] * definition.scale.seeds, {"pretrained": begun.name})
    (runs,) = checked_runs(definition)
    lr, rates = runs.variant.lr, {}
    if runs.variant.search:
        ((_, searched),) = train([runs], 1, effort)
        lr, rates = searched.lr, searched.rates
    ((kept, best),) = train([runs.keeping_checkpoints(lr)], definition.scale.seeds, effort, keep_checkpoints=True)
    dense = [(kept, replace(best, rates={**best.rates, **rates}))]
    finished = [outcome.run_dir for outcome in best.results if outcome.status == "finished" and outcome.run_dir]
    if not finished:
        raise UserError(f"{definition.name}: the dense model did not finish: {'; '.join(unfinished(dense))}")
    found = {"variants": variants_as_data(definition, dense)}
    return _converted(definition, effort, [source(run_dir) for run_dir in finished], found)


def _converted(
    definition: Definition, effort: Effort, sources: Sequence[conversion.Source], found: dict[str, Any]
) -> Result:
    torch.set_num_threads(effort.jobs * effort.threads)
    autocast = fastest_precision() == "bf16-mixed"
    rows = conversion.convert_all(definition.scale.options, sources, autocast, effort.folder)
    findings = conversion.findings(rows)
    found = {**found, "converted": [asdict(row) for row in rows]}
    _, verdict = overall(findings, definition.scale.differs, bool(definition.source))
    notes = [f"{row.model}: {row.note}" for row in rows if row.note]
    return Result(conversion.conversion_table(rows), verdict, found, findings, [conversion.panel(rows)], notes)


def source(run_dir: Path) -> conversion.Source:
    """The dense model of a finished run, with its data. Raises UserError where that is of an own class."""
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    model = read_trained(newest_checkpoint(run_dir))
    return _source(f"{run_dir.parent.name}/{run_dir.name}", model, config, run_dir)


def pretrained(runs: VariantRuns) -> conversion.Source:
    """The dense model with which a recipe begins, and the recipe's data, which are prepared if they are not there.

    Raises:
        UserError: the recipe begins with none, or its data are of another tokenizer.
    """
    config = yaml.safe_load(resolve_config(runs.configs, runs.configuration(runs.variant.lr, 0)))
    if not config.get("init_from"):
        raise UserError("pretrained: the recipe has no init_from: take that which lrtrain import writes")
    origin, path = find_origin(config["init_from"])
    return _source(f"{path.name} {origin.sha256[:8]}, {runs.name}", read_trained(path), config, runs.configs[0])


def _source(name: str, model: TrainedModel, config: dict[str, Any], where: Path) -> conversion.Source:
    """A model with the data that a run's configuration names; `where` that is, for what is wrong with it."""
    if "class_path" in config["data"]:
        raise UserError(f"{where}: a conversion reads shards, data: of this run is a class of its own: leave that out")
    if config["data"]["path"] is None:
        raise UserError(f"{where}: a conversion reads one data set, this run has data.mix: name one by data.path")
    settings = {key: config["data"][key] for key in ("path", "block_size", "batch_size", "num_workers")}
    limit, request = config["trainer"]["limit_val_batches"], config["data"].get("prepare")
    held_out = TokenDataModule(**settings, prepare=PrepareSpec(**request) if request else None)
    held_out.prepare_data()
    held_out.setup()
    model.check_data(held_out.tokenizer_json())

    def batches(seed: int) -> Iterator[Tensor]:
        return iter(TokenDataModule(**settings, seed=config["data"]["seed"] + seed).train_dataloader())

    manifest = json.dumps(asdict(held_out.manifest), sort_keys=True)
    return conversion.Source(
        name=f"{name}, data {hashlib.sha256(manifest.encode()).hexdigest()[:8]}",
        decoder=model.decoder.to("cuda" if torch.cuda.is_available() else "cpu"),
        batches=batches,
        held_out=lambda: islice(iter(held_out.val_dataloader()), limit if isinstance(limit, int) else None),
    )
