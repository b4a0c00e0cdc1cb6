"""What a finished run says."""

from pathlib import Path

import lightning as L
import torch
from tokenizers import Tokenizer

from lrtrain.callbacks.checkpoint_folder import FOLDER, steps_in
from lrtrain.callbacks.spectral import SpectralConstraints
from lrtrain.callbacks.throughput import Throughput
from lrtrain.module import CausalLM
from lrtrain.nn import sample
from lrtrain.tracking.logger import MLflowLogger

SAMPLE_TOKENS = 80


def print_summary(trainer: L.Trainer, model: CausalLM) -> None:
    """Validation figures, size, speed, spectral norms, a sample, and where everything lies; on the first process."""
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if not trainer.is_global_zero:
        return
    decoder = model.decoder
    assert decoder is not None
    rows: list[tuple[str, str]] = []
    if "val/loss" in metrics:
        figures = [f"loss {metrics['val/loss']:.4f}", f"perplexity {metrics['val/perplexity']:.2f}"]
        if "val/bits_per_byte" in metrics:
            figures.append(f"bits per byte {metrics['val/bits_per_byte']:.4f}")
        rows.append(("validation", "   ".join(figures)))
    parameters, dense = sum(p.numel() for p in decoder.parameters()), decoder.dense_equivalent()
    rows.append(("parameters", f"{parameters:,}   dense equivalent {dense:,}   ({parameters / dense:.0%})"))
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Throughput):
            rows.append(("tokens", f"{callback.tokens_seen:,} seen   {callback.tokens_per_second:,.0f} a second"))
        if isinstance(callback, SpectralConstraints) and callback.measured:
            rows.append(("spectral norms", _norms(callback.measured)))
    saved = list(steps_in(Path(trainer.default_root_dir, FOLDER)).values())
    if saved:
        rows.append(("checkpoint", str(saved[0])))
    if isinstance(trainer.logger, MLflowLogger):
        rows.append(("tracking", f"mlflow ui --backend-store-uri {trainer.logger.tracking_uri}"))
    print()
    for name, text in rows:
        print(f"{name:<15} {text}")
    tokenizer_file = Path(trainer.default_root_dir, "tokenizer.json")
    if tokenizer_file.is_file():
        print(f"{'sample':<15} {_sample(model, Tokenizer.from_file(str(tokenizer_file)))}")


def _norms(measured: dict[str, float]) -> str:
    named = {
        "spectral/sigma_A": "σ(A) {:.3f}",
        "spectral/sigma_B": "σ(B) {:.3f}",
        "spectral/update_over_lr": "‖ΔW‖₂/η {:.3f}",
        "spectral/orthonormality_error": "max |UᵀU − I| {:.1e}",
    }
    return "   ".join(text.format(measured[key]) for key, text in named.items() if key in measured)


def _sample(model: CausalLM, tokenizer: Tokenizer) -> str:
    prompt = "def "
    assert model.decoder is not None
    generator = torch.Generator().manual_seed(0)
    tokens = sample(model.decoder.eval(), tokenizer.encode(prompt).ids, SAMPLE_TOKENS, 0.8, 0.95, generator)
    return "\n" + "\n".join(f"    {line}" for line in (prompt + tokenizer.decode(tokens)).splitlines())
