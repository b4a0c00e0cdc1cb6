"""Dense to SCT: the MLP projections of a trained decoder by rank and by energy, as they are and fine-tuned."""

import copy
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrtrain.constraints import StiefelRetraction, find_factors
from lrtrain.nn import Decoder, SpectralLinear, projections
from lrtrain.optim import WarmupCosine
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import write_atomically, writing
from lrtrain.runtime.table import table
from lrtrain.studies.compare.comparison import spread
from lrtrain.studies.compare.panels import Panel
from lrtrain.studies.experiments.definition import LOSS, Check
from lrtrain.studies.experiments.experiment_figure import over_x
from lrtrain.studies.experiments.verdict import Finding, judge
from lrtrain.studies.jobs.best_rate import best_over_seeds

DENSE = "dense"
CACHE = "converted.json"


@dataclass(frozen=True)
class Task:
    """What a row converts to: a rank, a share of the energy, or, with neither, nothing: the dense model goes on."""

    rank: int | None = None
    energy: float | None = None

    @property
    def name(self) -> str:
        if self.rank is not None:
            return f"rank {self.rank}"
        return DENSE if self.energy is None else f"energy {self.energy:g}"


@dataclass(frozen=True)
class Row:
    """A task's outcome: one loss a seed, before and after fine-tuning; mean rank; parameters of the first seed's."""

    task: Task
    lr: float
    rates: dict[float, float]
    parameters: int
    rank: float
    before: list[float]
    after: list[float]


@dataclass(frozen=True)
class Source:
    """A trained dense model and its data: `batches(seed)` are endless training batches, `held_out` is to judge by."""

    name: str
    decoder: Decoder
    batches: Callable[[int], Iterator[Tensor]]
    held_out: Callable[[], Iterator[Tensor]]


def tasks(ranks: Sequence[int], energies: Sequence[float]) -> list[Task]:
    """The rows, dense first."""
    return [Task(), *(Task(rank=rank) for rank in ranks), *(Task(energy=energy) for energy in energies)]


def convert(decoder: Decoder, task: Task) -> Decoder:
    """A copy whose MLP projections are spectral, the best approximations of the dense ones; attention stays.

    Raises:
        UserError: the rank is larger than a weight's smaller side, or a projection has no dense weight.
    """
    converted = copy.deepcopy(decoder)
    if task == Task():
        return converted
    for block in converted.blocks:
        mlp: Any = block.mlp
        for name in ("gate", "up", "down"):
            dense = getattr(mlp, name)
            if not hasattr(dense, "materialize"):
                raise UserError(
                    f"source: {type(dense).__name__} (mlp.{name}) has no dense weight that could be converted"
                )
            try:
                spectral = SpectralLinear.from_dense(dense.materialize(), task.rank, task.energy)
            except ValueError as error:
                raise UserError(f"ranks: {error}") from error
            setattr(mlp, name, spectral)
    return converted


def converted_parameters(decoder: Decoder, task: Task) -> int | None:
    """Parameters after a conversion by rank, without weights; None where these decide."""
    total = sum(p.numel() for p in decoder.parameters())
    if task.energy is not None or task.rank is None:
        return total if task == Task() else None
    mlp = [one for name, one in projections(decoder).items() if ".mlp." in name]
    dense = sum(m.in_features * m.out_features for m in mlp)
    return total - dense + sum(task.rank * (m.in_features + m.out_features + 1) for m in mlp)


@torch.no_grad()
def held_out_loss(decoder: Decoder, source: Source, autocast: bool) -> float:
    """Mean next-token loss over the held-out batches, in nats."""
    device = next(decoder.parameters()).device
    total, tokens = 0.0, 0
    for batch in source.held_out():
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss = decoder.eval().loss(batch[:, :-1].to(device), batch[:, 1:].to(device))
        total, tokens = total + float(loss) * batch[:, 1:].numel(), tokens + batch[:, 1:].numel()
    return total / tokens


def fine_tune(decoder: Decoder, source: Source, seed: int, steps: int, lr: float, autocast: bool) -> float:
    """Held-out loss after some AdamW steps with QR retraction, one learning rate for all parameters.

    The schedule is the recipes': a linear warm-up over 5 % of the steps and half a cosine to 0; gradients are clipped
    at norm 1. A loss that is not finite ends it, as infinity.
    """
    device = next(decoder.parameters()).device
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = WarmupCosine(optimizer, steps, warmup=0.05)
    retraction = StiefelRetraction().hold(find_factors(decoder)[1])
    decoder.train()
    for batch in islice(source.batches(seed), steps):
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss = decoder.loss(batch[:, :-1].to(device), batch[:, 1:].to(device))
        if not torch.isfinite(loss):
            return math.inf
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        retraction.before_step(optimizer)
        optimizer.step()
        retraction.after_step()
        schedule.step()
    return held_out_loss(decoder, source, autocast)


def convert_all(
    wanted: Sequence[Task],
    sources: Sequence[Source],
    steps: int,
    lr: float,
    autocast: bool,
    folder: Path,
    each: Callable[[str], object] = lambda text: None,
) -> list[Row]:
    """Every task on every source; the learning rate of fine-tuning is searched on the first one, by factors of two.

    Losses that were found are kept in `converted.json` and not computed again.

    Args:
        wanted: The rows.
        sources: Dense models, one a seed.
        steps: Of fine-tuning.
        lr: First learning rate of the search.
        autocast: Compute in bfloat16.
        folder: Of the losses that are kept.
        each: Takes a line as a loss is found.

    Raises:
        UserError: a rank is too large, or the folder cannot be written.
    """
    known = _known(folder / CACHE)

    def loss(task: Task, source: Source, rate: float | None) -> float:
        what = "as converted" if rate is None else f"{steps} steps at lr {rate:g}"
        key = f"{source.name}, {task.name}, {what}"
        if key not in known:
            decoder = convert(source.decoder, task)
            if rate is None:
                known[key] = held_out_loss(decoder, source, autocast)
            else:
                known[key] = fine_tune(decoder, source, 1 + sources.index(source), steps, rate, autocast)
            _keep(folder / CACHE, known)
            each(f"{key}: loss {known[key]:.4f}")
        return known[key]

    def tuned(task: Task, rate: float, seed: int) -> float:
        return loss(task, sources[seed], rate)

    rows = []
    for task in wanted:
        decoder = convert(sources[0].decoder, task)
        spectral = [m.rank for m in decoder.modules() if isinstance(m, SpectralLinear)]
        best = best_over_seeds(partial(tuned, task), float, lr, range(len(sources)))
        rows.append(
            Row(
                task,
                best.lr,
                best.rates,
                sum(p.numel() for p in decoder.parameters()),
                statistics.fmean(spectral) if spectral else math.nan,
                before=[loss(task, source, None) for source in sources],
                after=best.results,
            )
        )
    return rows


def _known(file: Path) -> dict[str, float]:
    try:
        return json.loads(file.read_text()) if file.is_file() else {}
    except ValueError as error:
        raise UserError(f"{file} is damaged: remove it") from error


def _keep(file: Path, losses: dict[str, float]) -> None:
    with writing(f"cannot write {file}", "set --runs to another folder"):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(losses, indent=2).encode())


def conversion_table(rows: Sequence[Row]) -> str:
    """A line a row, mean ± sample standard deviation over seeds."""
    lines = [["model", "mean rank", "parameters", "loss as converted", "lr", "loss after fine-tuning"]]
    for row in rows:
        rank = "" if math.isnan(row.rank) else f"{row.rank:.1f}"
        name, count = row.task.name, f"{row.parameters:,}"
        lines.append([name, rank, count, spread(row.before), f"{row.lr:g}", spread(row.after)])
    return table(lines)


def findings(rows: Sequence[Row]) -> list[Finding]:
    """Whether the dense model stays ahead of every rank after fine-tuning."""
    after = {row.task.name: row.after for row in rows}
    checks = [Check("order", (DENSE, row.task.name)) for row in rows if row.task.rank is not None]
    return [judge(check, lambda name, *_: after[name], {name: name for name in after}) for check in checks]


def panel(rows: Sequence[Row]) -> Panel:
    """Loss over parameters: dense, and by rank and by energy, before and after fine-tuning."""
    lines: dict[str, list[tuple[float, list[float]]]] = {}
    for row in rows:
        by = "dense" if row.task == Task() else "by rank" if row.task.rank is not None else "by energy"
        for what, losses in (("as converted", row.before), ("fine-tuned", row.after)):
            finite = [loss for loss in losses if math.isfinite(loss)]
            if finite:
                lines.setdefault(f"{by}, {what}", []).append((row.parameters / 1e6, finite))
    return over_x("Loss of converted models", "parameters (millions)", f"{LOSS} (nats per token)", lines)


def as_data(row: Row) -> dict[str, Any]:
    """A row for JSON, losses one a seed."""
    return {
        "model": row.task.name,
        "mean_rank": row.rank,
        "parameters": row.parameters,
        "as_converted": row.before,
        "searched": {f"{lr:g}": loss for lr, loss in sorted(row.rates.items())},
        "lr": row.lr,
        "fine_tuned": row.after,
    }
