"""A model of transformers whose layers `nn.factorize_` has replaced: `from_pretrained` makes them again."""

from typing import Any

from lrtrain.nn.noted_ranks import METHOD, note_ranks, replace_empty


def register() -> None:
    """Lets transformers load what `save_pretrained` wrote of a factorized model; call it once in a process.

    transformers calls such a hook a quantizer. It makes the layers that `quantization_config` in config.json names,
    before the weights are read; what comes of it is an ordinary model, which trains, saves and loads again.

    Raises:
        ImportError: transformers is not installed.
    """
    from transformers.quantizers.auto import (
        AUTO_QUANTIZER_MAPPING,
        register_quantization_config,
        register_quantizer,
    )
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    if METHOD in AUTO_QUANTIZER_MAPPING:
        return

    @register_quantization_config(METHOD)
    class FactorizedConfig(QuantizationConfigMixin):
        def __init__(
            self, low_rank: dict[str, int] | None = None, spectral: dict[str, int] | None = None, **_: Any
        ) -> None:
            self.quant_method: Any = METHOD  # transformers types its own names alone
            self.low_rank = low_rank or {}
            self.spectral = spectral or {}

    @register_quantizer(METHOD)
    class FactorizedModels(HfQuantizer):
        is_trainable = True
        is_qat_trainable = True
        is_compileable = True

        def is_serializable(self) -> bool:
            return True

        def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
            noted: Any = self.quantization_config
            replace_empty(model, {"low_rank": noted.low_rank, "spectral": noted.spectral})

        def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
            # From here on it is no quantized model: it may change its dtype and train, and saves as it is.
            self.remove_quantization_config(model)
            note_ranks(model)
            return model
