"""How each kind of experiment is planned and run."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from lrtrain.runtime.errors import UserError
from lrtrain.studies.experiments.arm_runs import Trained, train_arms
from lrtrain.studies.experiments.arms import Arm, arms_of, kept
from lrtrain.studies.experiments.definition import Definition
from lrtrain.studies.experiments.experiment_report import (
    FIGURE,
    folder_of,
    plan_table,
    result_table,
    unfinished,
    variants_as_data,
    write_results,
)
from lrtrain.studies.experiments.verdict import judge, overall
from lrtrain.studies.jobs.job import Job, Outcome
from lrtrain.studies.plan.counted import counted, planned

if TYPE_CHECKING:
    from torch import Tensor

    from lrtrain.studies.experiments.conversion import Source


@dataclass(frozen=True)
class Effort:
    """Where the runs are, how many are trained at a time, and the threads of each."""

    runs: Path
    jobs: int
    threads: int


def plan(definition: Definition) -> str:
    """Prints what an experiment takes. Raises UserError for what the configuration does not take."""
    if definition.kind == "isoflop":
        from lrtrain.studies.scaling.grid import table
        from lrtrain.studies.scaling.stages import plan_grid

        print(table(plan_grid(definition.scale.options["grid"], definition.name).points))
    elif definition.kind == "memory":
        from lrtrain.studies.plan.sct_memory import PUBLISHED, sct_table

        print(sct_table(PUBLISHED))
    else:
        arms = arms_of(definition, counted)
        print(plan_table(arms))
        if definition.kind == "conversion":
            from lrtrain.studies.experiments.conversion import converted_parameters, tasks

            decoder = planned(arms[0].configs, arms[0].configuration(arms[0].variant.lr, 0)).decoder
            options = definition.scale.options
            for task in tasks(options["ranks"], options["energies"])[1:]:
                parameters = converted_parameters(decoder, task)
                size = "as many parameters as its ranks take" if parameters is None else f"{parameters:,} parameters"
                print(f"converted, {task.name}: {size}")
    return "planned"


def run(definition: Definition, effort: Effort) -> str:
    """Runs an experiment, prints its table and verdict, writes its figure and numbers, and returns the verdict.

    Raises:
        UserError: a run is refused for its configuration, or a folder cannot be written.
    """
    kinds = {"training": _training, "isoflop": _isoflop, "memory": _memory, "conversion": _conversion}
    verdict = kinds[definition.kind](definition, effort)
    if definition.kind != "isoflop":  # its fit has said it
        print(f"verdict: {verdict}")
    print(f"wrote {folder_of(effort.runs, definition.name, definition.scale.name)}", flush=True)
    return verdict


def _training(definition: Definition, effort: Effort) -> str:
    from lrtrain.studies.experiments.experiment_figure import draw
    from lrtrain.studies.experiments.records import value

    trained = _train(_checked_arms(definition), definition.scale.seeds, effort)
    outcomes = {one.arm.variant.name: one.outcomes for one in trained}
    labels = {variant.name: variant.label for variant in definition.variants}

    def measure(name: str, metric: str, statistic: str) -> list[float | None]:
        return [value(outcome, metric, statistic) for outcome in outcomes[name]]

    findings = [judge(check, measure, labels) for check in definition.checks]
    _, verdict = overall(findings, definition.scale.differs)
    print(f"\n{result_table(definition, trained)}")
    folder = folder_of(effort.runs, definition.name, definition.scale.name)
    write_results(definition, {"variants": variants_as_data(definition, trained)}, findings, verdict, folder)
    missing = draw(definition, trained, folder / FIGURE)
    _say(*missing, *(f"beyond the paper: {f.outcome}: {f.text}" for f in findings if f.ours))
    return verdict


def _checked_arms(definition: Definition) -> list[Arm]:
    """The arms, once every configuration is known to be one that `fit` takes."""
    from lrtrain.config.checked import checked

    arms = arms_of(definition, counted)
    for arm in arms:
        try:
            checked(arm.configs, arm.configuration(arm.variant.lr, 0))
        except UserError as error:
            raise UserError(f"{definition.name}: {arm.variant.name}: {error}") from error
    print(plan_table(arms), flush=True)
    return arms


def _train(arms: list[Arm], seeds: int, effort: Effort, keep: bool = False) -> list[Trained]:
    return train_arms(arms, seeds, effort.runs, effort.jobs, effort.threads, keep, _tell)


def _tell(job: Job, outcome: Outcome) -> None:
    said = f"loss {outcome.metric:.4f}" if outcome.status == "finished" else f"{outcome.status}: {outcome.reason}"
    _say(f"{job.name}: {said}")


def _say(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)


def _isoflop(definition: Definition, effort: Effort) -> str:
    from lrtrain.studies.scaling.grid import table
    from lrtrain.studies.scaling.stages import fit_laws, plan_grid, train_grid

    folder = folder_of(effort.runs, definition.name, definition.scale.name)
    grid = plan_grid(definition.scale.options["grid"], folder.resolve().name)
    grid.save(folder)
    print(table(grid.points))
    train_grid(folder, effort.runs, effort.jobs, effort.threads, _say)
    fit = fit_laws(folder, _say)
    write_results(definition, {"fit": fit}, [], fit["verdict"], folder)
    return str(fit["verdict"])


def _memory(definition: Definition, effort: Effort) -> str:
    from lrtrain.studies.compare.figure import picture
    from lrtrain.studies.experiments import measured_memory as memory

    most = definition.scale.options["measure"]
    if not isinstance(most, int | float) or most <= 0:
        raise UserError(f"{definition.name}: measure: expected the most MB of a dense matrix to measure, got {most!r}")
    rows = memory.measure_rows(most)
    findings = memory.findings(rows, definition.published)
    _, verdict = overall(findings, definition.scale.differs)
    print(memory.memory_table(rows))
    folder = folder_of(effort.runs, definition.name, definition.scale.name)
    write_results(definition, {"matrices": [memory.as_data(row) for row in rows]}, findings, verdict, folder)
    panel = memory.panel(rows)
    picture([panel], [band.label for band in panel.bands], folder / FIGURE)
    return verdict


def _conversion(definition: Definition, effort: Effort) -> str:
    import torch

    from lrtrain.config.train_parser import fastest_precision
    from lrtrain.studies.compare.figure import picture
    from lrtrain.studies.experiments import conversion

    options = definition.scale.options
    wanted = conversion.tasks(options["ranks"], options["energies"])
    for key in ("steps", "lr"):
        if isinstance(options[key], bool) or not isinstance(options[key], int | float) or options[key] <= 0:
            raise UserError(f"{definition.name}: {key}: expected a number above 0, got {options[key]!r}")
    arm, *others = _checked_arms(definition)
    if others:
        raise UserError(f"{definition.name}: variants: a conversion has one, the dense model, got {1 + len(others)}")
    lr, rates = arm.variant.lr, {}
    if arm.variant.search:
        (searched,) = _train([arm], 1, effort)
        lr, rates = searched.lr, searched.rates
    (dense,) = _train([kept(arm, lr)], definition.scale.seeds, effort, keep=True)
    dense = replace(dense, rates={**dense.rates, **rates})
    finished = [outcome.run_dir for outcome in dense.outcomes if outcome.status == "finished" and outcome.run_dir]
    if not finished:
        raise UserError(f"{definition.name}: the dense model did not finish: {'; '.join(unfinished([dense]))}")
    torch.set_num_threads(effort.jobs * effort.threads)
    folder = folder_of(effort.runs, definition.name, definition.scale.name)
    rows = conversion.convert_all(
        wanted,
        [_source(run_dir) for run_dir in finished],
        int(options["steps"]),
        float(options["lr"]),
        fastest_precision() == "bf16-mixed",
        folder,
        _say,
    )
    findings = conversion.findings(rows)
    _, verdict = overall(findings, definition.scale.differs)
    print(f"\n{conversion.conversion_table(rows)}")
    found = {
        "variants": variants_as_data(definition, [dense]),
        "converted": [conversion.as_data(row) for row in rows],
    }
    write_results(definition, found, findings, verdict, folder)
    panel = conversion.panel(rows)
    picture([panel], [band.label for band in panel.bands], folder / FIGURE)
    return verdict


def _source(run_dir: Path) -> "Source":
    """The dense model of a finished run, with the data that it was trained on."""
    import torch
    import yaml

    from lrtrain.config.trained_model import load, newest_checkpoint
    from lrtrain.data.datamodule import TokenDataModule
    from lrtrain.studies.experiments.conversion import Source

    decoder, _ = load(newest_checkpoint(run_dir))
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    settings = {
        key: config["data"][key] for key in ("path", "block_size", "batch_size", "val_batch_size", "num_workers")
    }
    limit = config["trainer"]["limit_val_batches"]
    held_out = TokenDataModule(**settings)
    held_out.setup()

    def batches(seed: int) -> "Iterator[Tensor]":
        loader = TokenDataModule(**settings, seed=config["data"]["seed"] + seed).train_dataloader()
        while True:
            yield from loader

    return Source(
        name=f"{run_dir.parent.name}/{run_dir.name}",
        decoder=decoder.to("cuda" if torch.cuda.is_available() else "cpu"),
        batches=batches,
        held_out=lambda: islice(iter(held_out.val_dataloader()), limit if isinstance(limit, int) else None),
    )
