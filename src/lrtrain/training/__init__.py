"""Training with Lightning: the module, what happens around its optimizer step, and FSDP.

Names are imported when they are asked for: `training.telemetry` does without Lightning.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrtrain.training.callbacks.nonfinite import NonFiniteGradients
    from lrtrain.training.callbacks.self_guidance import SelfGuidance
    from lrtrain.training.callbacks.spectral_constraints import SpectralConstraints
    from lrtrain.training.callbacks.spectral_telemetry import SpectralTelemetry
    from lrtrain.training.callbacks.step_progress import StepProgress
    from lrtrain.training.callbacks.throughput import Throughput
    from lrtrain.training.causal_lm import CausalLM
    from lrtrain.training.fsdp import FSDP
    from lrtrain.training.telemetry import Telemetry

__all__ = [
    "FSDP",
    "CausalLM",
    "NonFiniteGradients",
    "SelfGuidance",
    "SpectralConstraints",
    "SpectralTelemetry",
    "StepProgress",
    "Telemetry",
    "Throughput",
]

_PLACES = {
    "FSDP": "fsdp",
    "CausalLM": "causal_lm",
    "NonFiniteGradients": "callbacks.nonfinite",
    "SelfGuidance": "callbacks.self_guidance",
    "SpectralConstraints": "callbacks.spectral_constraints",
    "SpectralTelemetry": "callbacks.spectral_telemetry",
    "StepProgress": "callbacks.step_progress",
    "Telemetry": "telemetry",
    "Throughput": "callbacks.throughput",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]
