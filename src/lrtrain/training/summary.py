"""What a finished run says."""

import re
import shlex
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import lightning as L
import torch
from tokenizers import Tokenizer

from lrtrain.checkpoint.checkpoints import Checkpoints
from lrtrain.checkpoint.directory import FOLDER, steps_in
from lrtrain.nn import Decoder, Sampling, generate, text_after
from lrtrain.training.callbacks.closing_validation import ClosingValidation
from lrtrain.training.callbacks.spectral_telemetry import SpectralTelemetry
from lrtrain.training.callbacks.throughput import Throughput
from lrtrain.training.causal_lm import CausalLM
from lrtrain.training.fsdp import FSDP

SAMPLE_TOKENS = 80
PROMPT_TOKENS = 16
PROMPT = "def "
"""What is continued where no held-out text is known."""

CONTINUED = "▸"
"""Between the held-out text and what the model made of it."""


def print_summary(trainer: L.Trainer, model: CausalLM) -> None:
    """Prints, on the first process, validation figures, size, speed, spectral norms, a sample and where all lies."""
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    decoder = model.decoder
    assert decoder is not None
    continuation = _sample(trainer, decoder)
    if not trainer.is_global_zero:
        return
    rows: list[tuple[str, str]] = []
    if "val/loss" in metrics:
        figures = [f"loss {metrics['val/loss']:.4f}", f"perplexity {metrics['val/perplexity']:.2f}"]
        if "val/bits_per_byte" in metrics:
            figures.append(f"bits per byte {metrics['val/bits_per_byte']:.4f}")
        at = next((c.step for c in trainer.callbacks if isinstance(c, ClosingValidation)), None)  # type: ignore[attr-defined]
        rows.append(("validation", "   ".join([*figures, *([] if at is None else [f"step {at}"])])))
    if model.warm_start is not None and model.warm_start.loss is not None:
        rows.append(("began with", f"loss {model.warm_start.loss:.4f}   step 0, {model.warm_start.where}"))
    sources = [(name.split("/")[1], loss) for name, loss in metrics.items() if re.fullmatch(r"val/[^/]+/loss", name)]
    if sources:
        rows.append(("by source", "   ".join(f"{source} {loss:.4f}" for source, loss in sources)))
    parameters, dense = sum(p.numel() for p in decoder.parameters()), decoder.dense_equivalent()
    rows.append(("parameters", f"{parameters:,}   dense equivalent {dense:,}   ({parameters / dense:.0%})"))
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Throughput):
            rate = f"   {callback.tokens_per_second:,.0f} a second" if callback.tokens_per_second else ""
            rows.append(("tokens", f"{callback.tokens_seen:,} seen{rate}"))
        if isinstance(callback, Checkpoints) and callback.saver.saved:
            times, seconds = callback.saver.saved, callback.saver.stood_still
            rows.append(("saving", f"{times} checkpoints   training stood still {seconds:.2g} s for them"))
        if isinstance(callback, SpectralTelemetry) and callback.measured:
            rows.append(("spectral norms", _norms(callback.measured)))
    saved = list(steps_in(Path(trainer.default_root_dir, FOLDER)).values())
    if saved:
        rows.append(("checkpoint", str(saved[0])))
    trackers = [getattr(logger, "tracking_uri", None) for logger in trainer.loggers]
    uris = [uri for uri in trackers if isinstance(uri, str)]  # Lightning's logger that logs nothing has every attribute
    rows += [("tracking", f"mlflow ui --backend-store-uri {shlex.quote(uri)}") for uri in uris]
    print()
    for name, text in rows:
        print(f"{name:<15} {text}")
    if continuation:
        print(f"{'sample':<15} {continuation}")


def _norms(measured: dict[str, float]) -> str:
    named = {
        "spectral/sigma_A": "σ(A) {:.3f}",
        "spectral/sigma_B": "σ(B) {:.3f}",
        "spectral/update_over_lr": "‖ΔW‖₂/η {:.3f}",
        "spectral/orthonormality_error": "max |UᵀU − I| {:.1e}",
    }
    return "   ".join(text.format(measured[key]) for key, text in named.items() if key in measured)


def _sample(trainer: L.Trainer, decoder: Decoder) -> str | None:
    """A continuation by the first process, to which all contribute where each holds a part of the weights."""
    ids = None
    file = Path(trainer.default_root_dir, "tokenizer.json")
    if trainer.is_global_zero and file.is_file():
        tokenizer = Tokenizer.from_file(str(file))
        held_out = _held_out_beginning(trainer)
        ids = held_out or tokenizer.encode(PROMPT, add_special_tokens=False).ids or None
    context: AbstractContextManager = nullcontext()
    if isinstance(trainer.strategy, FSDP):
        ids = trainer.strategy.broadcast(ids)
        context = trainer.precision_plugin.forward_context()  # what is gathered is of the compute dtype
    if ids is None:
        return None
    try:
        with context, torch.compiler.set_stance("force_eager"):  # every length would be compiled by itself
            (found,) = generate(decoder.eval(), [ids], SAMPLE_TOKENS, Sampling(temperature=0.8, top_p=0.95))
    except (FloatingPointError, ValueError) as error:
        return f"none: {error}"
    if not trainer.is_global_zero:
        return None
    text = f"{tokenizer.decode(ids)}{CONTINUED}{text_after(ids, found.tokens, tokenizer.decode)}"
    title = f"held-out text {CONTINUED} its continuation" if held_out else ""
    return "\n".join([title, *(f"    {line}" for line in text.splitlines())])


def _held_out_beginning(trainer: L.Trainer) -> list[int]:
    """The first tokens of a held-out text, another one for another seed; none where nothing was validated."""
    closing = next((c for c in trainer.callbacks if isinstance(c, ClosingValidation)), None)  # type: ignore[attr-defined]
    if closing is None or closing.first_batch is None:
        return []
    row = closing.first_batch[torch.initial_seed() % len(closing.first_batch)].tolist()
    manifest = getattr(getattr(trainer, "datamodule", None), "manifest", None)
    end = getattr(manifest, "eot_id", None)  # between two texts
    begin = row.index(end) + 1 if end in row[: -PROMPT_TOKENS - 1] else 0
    return list(row[begin : begin + PROMPT_TOKENS])
