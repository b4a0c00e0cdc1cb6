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

import torch
from torch import Tensor

from lrtrain.constraints import StiefelRetraction, find_factors
from lrtrain.nn import Decoder, SpectralLinear, factorize_
from lrtrain.optim import WarmupCosine
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.files import write_atomically, writing
from lrtrain.runtime.table import table
from lrtrain.studies.compare.comparison import spread
from lrtrain.studies.experiments.definition import LOSS, Check, Conversion
from lrtrain.studies.experiments.experiment_figure import over_x
from lrtrain.studies.experiments.verdict import Finding, judge
from lrtrain.studies.jobs.best_rate import best_over_seeds
from lrtrain.studies.pages.drawn import Panel

DENSE = "dense"


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
    """What came of a task: losses one a seed, mean rank and parameters of the first seed's, losses by searched rate,
    and what is to be said of the search.
    """

    model: str
    mean_rank: float
    parameters: int
    as_converted: list[float]
    searched: dict[str, float]
    lr: float
    fine_tuned: list[float]
    note: str = ""


@dataclass(frozen=True)
class Source:
    """A trained dense model and its data: `batches(seed)` are endless training batches, `held_out` is to judge by.

    The name tells model and data from any other, for losses that are kept.
    """

    name: str
    decoder: Decoder
    batches: Callable[[int], Iterator[Tensor]]
    held_out: Callable[[], Iterator[Tensor]]


def tasks(options: Conversion) -> list[Task]:
    """The rows of a table, dense first."""
    return [Task(), *(Task(rank=rank) for rank in options.ranks), *(Task(energy=share) for share in options.energies)]


def convert(decoder: Decoder, task: Task) -> Decoder:
    """A copy whose MLP projections are spectral, the best approximations of the dense ones; attention stays.

    Raises:
        UserError: the rank is larger than a weight's smaller side, or a projection has no dense weight.
    """
    converted = copy.deepcopy(decoder)
    if task != Task():
        names = [
            f"blocks.{index}.mlp.{part}" for index in range(len(decoder.blocks)) for part in ("gate", "up", "down")
        ]
        try:
            factorize_(converted, rank=task.rank, energy=task.energy, kind="spectral", include=names)
        except ValueError as error:
            raise UserError(f"the dense model cannot be converted: {error}") from error
    return converted


@torch.no_grad()
def held_out_loss(decoder: Decoder, source: Source, autocast: bool) -> float:
    """Mean next-token loss over the held-out batches, in nats."""
    decoder.eval()
    total, tokens = 0.0, 0
    for batch in source.held_out():
        count = batch[:, 1:].numel()
        total, tokens = total + float(_loss(decoder, batch, autocast)) * count, tokens + count
    return total / tokens


def fine_tune(decoder: Decoder, source: Source, seed: int, steps: int, lr: float, autocast: bool) -> float:
    """Held-out loss after some AdamW steps with QR retraction, one learning rate for all parameters.

    The schedule is the recipes': a linear warm-up over 5 % of the steps and half a cosine to 0; gradients are clipped
    at norm 1. A loss that is not finite ends it, as infinity.
    """
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = WarmupCosine(optimizer, steps, warmup=0.05)
    retraction = StiefelRetraction().hold(find_factors(decoder)[1])
    decoder.train()
    for batch in islice(source.batches(seed), steps):
        loss = _loss(decoder, batch, autocast)
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


def _loss(decoder: Decoder, batch: Tensor, autocast: bool) -> Tensor:
    device = next(decoder.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        return decoder.loss(batch[:, :-1].to(device), batch[:, 1:].to(device))


def convert_all(options: Conversion, sources: Sequence[Source], autocast: bool, folder: Path) -> list[Row]:
    """Every task on every source; the learning rate of fine-tuning is searched on the first one, by factors of two.

    Losses that were found are printed, kept in `converted.json` and not computed again.

    Args:
        options: What to convert to, and how it is fine-tuned.
        sources: Dense models, one a seed; the same one for all where it was trained before.
        autocast: Compute in bfloat16.
        folder: Of the losses that are kept.

    Raises:
        UserError: a rank is too large, or the folder cannot be written.
    """
    file = folder / "converted.json"
    try:
        known: dict[str, float] = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError as error:
        raise UserError(f"{file} is damaged: remove it") from error

    def loss(task: Task, rate: float | None, seed: int) -> float:
        source = sources[seed]
        what = "as converted" if rate is None else f"{options.steps} steps at lr {rate:g}, seed {1 + seed}"
        key = f"{source.name}, {task.name}, {what}"
        if key not in known:
            decoder = convert(source.decoder, task)
            if rate is None:
                known[key] = held_out_loss(decoder, source, autocast)
            else:
                known[key] = fine_tune(decoder, source, 1 + seed, options.steps, rate, autocast)
            with writing(f"cannot write {file}", "set --runs to another folder"):
                folder.mkdir(parents=True, exist_ok=True)
                write_atomically(file, json.dumps(known, indent=2).encode())
            print(f"{key}: loss {known[key]:.4f}", flush=True)
        return known[key]

    rows = []
    for task in tasks(options):
        decoder = convert(sources[0].decoder, task)
        ranks = [m.rank for m in decoder.modules() if isinstance(m, SpectralLinear)]
        as_converted = [loss(task, None, seed) for seed in range(len(sources))]
        best = best_over_seeds(partial(loss, task), float, options.lr, range(len(sources)))
        rows.append(
            Row(
                model=task.name,
                mean_rank=statistics.fmean(ranks) if ranks else math.nan,
                parameters=sum(p.numel() for p in decoder.parameters()),
                as_converted=as_converted,
                searched={f"{lr:g}": found for lr, found in sorted(best.rates.items())},
                lr=best.lr,
                fine_tuned=best.results,
                note=best.at_end,
            )
        )
    return rows


def conversion_table(rows: Sequence[Row]) -> str:
    """A line a row, mean ± sample standard deviation over seeds."""
    lines = [["model", "mean rank", "parameters", "loss as converted", "lr", "loss after fine-tuning"]]
    for row in rows:
        size = ("" if math.isnan(row.mean_rank) else f"{row.mean_rank:.1f}", f"{row.parameters:,}")
        lines.append([row.model, *size, spread(row.as_converted), f"{row.lr:g}", spread(row.fine_tuned)])
    return table(lines)


def findings(rows: Sequence[Row]) -> list[Finding]:
    """Whether the dense model stays ahead of every rank after fine-tuning."""
    after = {row.model: row.fine_tuned for row in rows}
    checks = [Check(order=(DENSE, name)) for name in after if name.startswith("rank ")]
    return [judge(check, lambda name, *_: after[name], {name: name for name in after}) for check in checks]


def panel(rows: Sequence[Row]) -> Panel:
    """Loss over parameters: dense, and by rank and by energy, before and after fine-tuning."""
    lines: dict[str, list[tuple[float, list[float]]]] = {}
    for row in rows:
        by = DENSE if row.model == DENSE else f"by {row.model.partition(' ')[0]}"
        for what, losses in (("as converted", row.as_converted), ("fine-tuned", row.fine_tuned)):
            finite = [loss for loss in losses if math.isfinite(loss)]
            if finite:
                lines.setdefault(f"{by}, {what}", []).append((row.parameters / 1e6, finite))
    return over_x("Loss of converted models", "parameters (millions)", f"{LOSS} (nats per token)", lines)
