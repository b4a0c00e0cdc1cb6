"""Training with Lightning: the module, what happens around its optimizer step, and FSDP.

Names are imported when they are asked for: `training.telemetry` does without Lightning.
"""

import importlib
from typing import Any

_PLACES = {
    "FSDP": "fsdp",
    "CausalLM": "causal_lm",
    "Heartbeat": "callbacks.heartbeat",
    "NonFiniteGradients": "callbacks.nonfinite",
    "SelfGuidance": "callbacks.self_guidance",
    "SpectralConstraints": "callbacks.spectral_constraints",
    "SpectralTelemetry": "callbacks.spectral_telemetry",
    "StepProgress": "callbacks.step_progress",
    "Telemetry": "telemetry",
    "TextSamples": "callbacks.text_samples",
    "Throughput": "callbacks.throughput",
}

__all__ = [*_PLACES]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]
