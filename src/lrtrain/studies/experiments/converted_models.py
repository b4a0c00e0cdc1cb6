"""The experiment that trains a dense model and converts it: `conversion` on its runs and their data."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import torch
import yaml
from torch import Tensor

from lrtrain.config.train_parser import fastest_precision
from lrtrain.config.trained_model import load, newest_checkpoint
from lrtrain.data.datamodule import TokenDataModule
from lrtrain.runtime.errors import UserError
from lrtrain.studies.experiments import conversion
from lrtrain.studies.experiments.definition import Definition
from lrtrain.studies.experiments.experiment_report import Effort, Result, plan_table, unfinished, variants_as_data
from lrtrain.studies.experiments.trained_variants import checked_runs, train
from lrtrain.studies.experiments.variant_runs import variant_runs
from lrtrain.studies.experiments.verdict import overall
from lrtrain.studies.plan.counted import planned


def plan(definition: Definition) -> str:
    """What the dense model takes, and how large the converted ones are."""
    (runs, *_) = of_variants = variant_runs(definition)
    lines = [plan_table(of_variants)]
    _, model = planned(runs.configs, runs.configuration(runs.variant.lr, 0))
    for task in conversion.tasks(definition.scale.options)[1:]:
        size = "as many parameters as its ranks take"
        if task.rank is not None:
            size = f"{sum(p.numel() for p in conversion.convert(model.decoder, task).parameters()):,} parameters"
        lines.append(f"converted, {task.name}: {size}")
    return "\n".join(lines)


def run(definition: Definition, effort: Effort) -> Result:
    """Trains the dense model over seeds, converts each, and fine-tunes what comes of it.

    Raises:
        UserError: there is not one variant alone, the dense model did not finish, or a rank is too large.
    """
    runs, *others = checked_runs(definition)
    if others:
        raise UserError(f"{definition.name}: variants: a conversion has one, the dense model, got {1 + len(others)}")
    lr, rates = runs.variant.lr, {}
    if runs.variant.search:
        ((_, searched),) = train([runs], 1, effort)
        lr, rates = searched.lr, searched.rates
    ((kept, best),) = train([runs.keeping_checkpoints(lr)], definition.scale.seeds, effort, keep_checkpoints=True)
    dense = [(kept, replace(best, rates={**best.rates, **rates}))]
    finished = [outcome.run_dir for outcome in best.results if outcome.status == "finished" and outcome.run_dir]
    if not finished:
        raise UserError(f"{definition.name}: the dense model did not finish: {'; '.join(unfinished(dense))}")
    torch.set_num_threads(effort.jobs * effort.threads)
    sources, autocast = [source(run_dir) for run_dir in finished], fastest_precision() == "bf16-mixed"
    rows = conversion.convert_all(definition.scale.options, sources, autocast, effort.folder)
    findings = conversion.findings(rows)
    found = {"variants": variants_as_data(definition, dense), "converted": [asdict(row) for row in rows]}
    _, verdict = overall(findings, definition.scale.differs, bool(definition.source))
    return Result(conversion.conversion_table(rows), verdict, found, findings, [conversion.panel(rows)])


def source(run_dir: Path) -> conversion.Source:
    """The dense model of a finished run, with its data. Raises UserError where that is of an own class."""
    decoder, _ = load(newest_checkpoint(run_dir))
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    if "class_path" in config["data"]:
        raise UserError(
            f"{run_dir}: a conversion reads shards, data: of this run is a class of its own: leave that out"
        )
    if config["data"]["path"] is None:
        raise UserError(f"{run_dir}: a conversion reads one data set, this run has data.mix: name one by data.path")
    settings = {key: config["data"][key] for key in ("path", "block_size", "batch_size", "num_workers")}
    limit = config["trainer"]["limit_val_batches"]
    held_out = TokenDataModule(**settings)
    held_out.setup()

    def batches(seed: int) -> Iterator[Tensor]:
        return iter(TokenDataModule(**settings, seed=config["data"]["seed"] + seed).train_dataloader())

    return conversion.Source(
        name=f"{run_dir.parent.name}/{run_dir.name}",
        decoder=decoder.to("cuda" if torch.cuda.is_available() else "cpu"),
        batches=batches,
        held_out=lambda: islice(iter(held_out.val_dataloader()), limit if isinstance(limit, int) else None),
    )
