"""A checkpoint to a folder for transformers, with what is known of its run."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from lrtrain.checkpoint.checkpoint_io import check_tokenizer
from lrtrain.checkpoint.huggingface.compressed import check_truncation, truncate
from lrtrain.checkpoint.huggingface.exported_folder import Written, check_packages, write_folder
from lrtrain.checkpoint.huggingface.format_advice import advice
from lrtrain.checkpoint.huggingface.llama_layout import check_exportable
from lrtrain.checkpoint.huggingface.model_card import Facts, card, projections_in_words
from lrtrain.checkpoint.huggingface.tokenizer_files import end_of_text_token
from lrtrain.checkpoint.shard_folder import digest
from lrtrain.config.export_settings import Export
from lrtrain.config.export_target import check_out, folder_for
from lrtrain.config.trained_model import TrainedModel, read_trained
from lrtrain.data.datamodule import TokenDataModule
from lrtrain.data.mix import Weighted
from lrtrain.nn import Decoder
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.long_work import LongWork
from lrtrain.tracking.provenance import git_state
from lrtrain.tracking.recorded import recorded

RECIPE = "recipe.yaml"


def export(
    checkpoint: Path,
    out: str | Path,
    settings: Export,
    rank: int | None = None,
    energy: float | None = None,
    data: str | None = None,
    context: int | None = None,
    say: Callable[[str], None] = print,
) -> Written:
    """Writes the folder `out` and says what is in it.

    Args:
        checkpoint: A file or a folder of shards.
        out: The folder, which is not there yet, or the URL of one in a store.
        settings: Its format, the weights' dtype and the shards' size.
        rank: Lower the projections to this rank; or give energy, a share of Σσ² that they are to hold.
        energy: In (0, 1].
        data: Shards on whose held-out split the loss is told before and after that; those of the run when None.
        context: Tokens of the longest sequence; `data.block_size` of the run, or what an imported model was made for,
            when None.
        say: Takes each line.

    Raises:
        UserError: whatever cannot be exported, or not whole; nothing is left then.
        TemporaryError: the store does not answer.
    """
    check_export(out, rank, energy, data)
    trained = read_trained(checkpoint)
    keep = settings.format == "factorized"
    check_exportable(trained.decoder, keep)
    length = context or trained.context or block_size(trained.config["data"])
    facts = _facts(trained, settings, length)
    if rank is not None or energy is not None:
        truncation = _truncated(trained, rank, energy, data, length)
        say(f"{'truncated':<15} {truncation}")
        if not keep:
            say(f"{'':<15} the merged weights have as many numbers as before; --factorized keeps the factors, fewer")
        facts = replace(facts, truncation=truncation, projections=projections_in_words(trained.decoder))

    counsel = advice(trained.decoder, settings.dtype)

    def texts(written: Written) -> dict[str, str]:
        return {"README.md": card(facts, written), RECIPE: trained.recipe}

    shard_bytes, dtype = settings.shard_bytes, settings.dtype
    model = trained.decoder, trained.tokenizer
    with folder_for(out) as folder:
        written = write_folder(*model, folder, length, keep, dtype, shard_bytes, texts, trained.imported)
    for name, text in _report(written, settings):
        say(f"{name:<15} {text}")
    if counsel is not None:
        say(f"{'advice':<15} {counsel}")
    say(f"{'wrote':<15} {out}")
    return written


def check_export(
    out: str | Path, rank: int | None = None, energy: float | None = None, data: str | None = None
) -> None:
    """Refuses what can be refused before a model is read: a missing package, a target that is there, a bad rank."""
    check_packages()
    if rank is not None or energy is not None:
        check_truncation(rank, energy)
    elif data is not None:
        raise UserError(f"--data {data}: it is for the loss before and after --truncate-rank or --energy")
    check_out(out)


def held_out_loss(decoder: Decoder, data: TokenDataModule, limit: int | float | None) -> tuple[float, int]:
    """Mean next-token loss over the held-out split, in nats, computed in float32, and the tokens that were predicted.

    Of a mix it is the mean of the sources' losses by weight, as in training. `limit` is `trainer.limit_val_batches`: a
    number of batches of each source, or a share of them; all where it is None, or 0, as without validation.
    """
    loaders, shares = data.val_dataloader(), list(data.source_shares.values())
    mean, tokens = 0.0, 0
    for loader, share in zip(loaders, shares, strict=True) if shares else [(loaders, 1.0)]:
        loss, predicted = _loss(decoder, loader, limit)
        mean, tokens = mean + share * loss, tokens + predicted
    return mean, tokens


@torch.no_grad()
def _loss(decoder: Decoder, loader: Any, limit: int | float | None) -> tuple[float, int]:
    if not limit:
        count = len(loader)
    else:  # as the Trainer reads it
        count = int(limit) if isinstance(limit, int) or limit > 1 else max(1, int(limit * len(loader)))
    total, tokens = 0.0, 0
    with LongWork("held-out loss", count, "batches") as work:
        for batch in islice(iter(loader), count):
            work.advance()
            predicted = batch[:, 1:].numel()
            total += float(decoder.loss(batch[:, :-1], batch[:, 1:])) * predicted
            tokens += predicted
    return total / tokens, tokens


def _truncated(trained: TrainedModel, rank: int | None, energy: float | None, path: str | None, length: int) -> str:
    data, limit = _held_out(trained, path, length), trained.config["trainer"]["limit_val_batches"]
    before, tokens = held_out_loss(trained.decoder, data, limit)
    done = truncate(trained.decoder, rank, energy)
    after, _ = held_out_loss(trained.decoder, data, limit)
    asked = f"rank {rank}" if energy is None else f"{energy:g} of the energy"
    return (
        f"{done.changed} of {done.of} projections to {asked}, mean rank {done.before:.1f} → {done.after:.1f}; "
        f"held-out loss {before:.4f} → {after:.4f} ({tokens:,} tokens)"
    )


def _held_out(trained: TrainedModel, path: str | None, length: int) -> TokenDataModule:
    settings = trained.config["data"]
    if "class_path" in settings:
        if path is None:
            raise UserError(
                f"the loss before and after needs held-out shards, and data of this run is {settings['class_path']}: "
                "name a folder of lrtrain prepare by --data, made with the run's tokenizer"
            )
        settings = {"block_size": length, "batch_size": 8}
    sizes = {key: settings[key] for key in ("block_size", "batch_size")}
    mix = [Weighted(**source) for source in settings.get("mix") or ()]
    try:
        data = TokenDataModule(path, **sizes) if path else TokenDataModule(settings["path"], mix=mix or None, **sizes)
        data.setup("validate")
    except UserError as error:
        raise UserError(
            f"the loss before and after needs the held-out data of the run: {error}; or name it by --data"
        ) from error
    check_tokenizer(trained.tokenizer.to_str(), data.tokenizer_json(), trained.path)
    return data


def block_size(stated: dict[str, Any], command: str = "export") -> int:
    """Tokens of a sequence, of a configuration's `data`. Raises UserError where an own class names none."""
    found = stated.get("init_args", stated).get("block_size")
    if not isinstance(found, int):
        raise UserError(
            f"{command}: data is {stated['class_path']}, which has no block_size: lrtrain {command} --context gives "
            "the tokens of the longest sequence"
        )
    return found


def _facts(trained: TrainedModel, settings: Export, length: int) -> Facts:
    run_dir = trained.run_dir
    run = None if run_dir is None else recorded(run_dir)
    metrics: dict[str, tuple[int, float]] = {}
    for name, series in ({} if run is None else run.metrics).items():
        known = series.step <= trained.step
        if known.any():
            metrics[name] = int(series.step[known][-1]), float(series.value[known][-1])
    origin = trained.imported or trained.ancestor
    tags = {} if run is None else run.tags
    versions = {name.partition(".")[2]: version for name, version in tags.items() if name.startswith("versions.")}
    return Facts(
        name=trained.config["name"] + (f"/{run_dir.name}" if run_dir is not None and run is not None else ""),
        format=settings.format or "merged",
        license=settings.license or (origin.license if origin else None),
        config=trained.config,
        step=trained.step,
        tokens_seen=trained.callbacks.get("Throughput", {}).get("tokens_seen"),
        metrics=metrics,
        length=length,
        end_of_text=end_of_text_token(trained.tokenizer),
        projections=projections_in_words(trained.decoder),
        truncation=None,
        checkpoint=trained.path.name,
        digest=digest(trained.path),
        versions=trained.imported.versions if trained.imported else versions or {"lrtrain": trained.version},
        trained_at=tags.get("git.commit"),
        exported_at=git_state().get("commit"),
        dtype=settings.dtype,
        imported=trained.imported,
        ancestor=trained.ancestor,
    )


def _report(written: Written, settings: Export) -> list[tuple[str, str]]:
    shards = "1 file" if written.shards == 1 else f"{written.shards} files"
    rows = [
        ("weights", f"{written.parameters:,} numbers   {settings.dtype}   {written.bytes / 1e6:,.1f} MB in {shards}"),
        (
            "logits",
            f"transformers' differ from ours by at most {written.difference:.1e}, bound {written.bound:.1e}, over "
            f"{written.tokens} tokens",
        ),
    ]
    if settings.dtype != "float32":
        rows.append(("rounding", f"{settings.dtype} moves the logits by at most {written.rounded:.1e}"))
    return rows
