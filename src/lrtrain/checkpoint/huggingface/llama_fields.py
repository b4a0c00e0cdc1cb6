"""A configuration of transformers as the arguments of our decoder, or the field for which there is none."""

from typing import Any

from lrtrain.runtime.errors import UserError

FAMILIES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
"""`model_type` that are a Llama where every field fits, and the class that computes them."""
OTHERS = {
    "qwen2": "its query, key and value have biases (attention_bias)",
    "qwen3": "it has norms of queries and keys (q_norm, k_norm)",
    "gemma": "its MLP is gated by GELU (hidden_act) and its embedding scaled",
    "gemma2": "its MLP is gated by GELU (hidden_act) and it has norms after attention and MLP",
    "gemma3_text": "its MLP is gated by GELU (hidden_act) and it has norms of queries and keys",
    "phi3": "its query, key and value are one matrix (qkv_proj), its gate and up another (gate_up_proj)",
    "olmo2": "its norms come after attention and MLP, and it has norms of queries and keys",
    "mixtral": "its MLP is a mixture of experts (num_local_experts)",
    "smollm3": "some of its layers have no rotary positions (no_rope_layers)",
    "granite": "it multiplies embedding, attention, residuals and logits (embedding_multiplier)",
    "factorized_llama": "it is lrtrain's own export with factors: use the checkpoint that it was made from",
}
"""Why others are none."""
ROPE_TYPES = ("default", "linear", "llama3")
ROPE_NUMBERS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def llama_fields(text: str, stated: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """transformers' configuration, and the decoder's arguments that it means, without those of the projections.

    Args:
        text: The source, as it was asked for.
        stated: The entries of its config.json.

    Raises:
        UserError: a field says that it is no Llama of ours.
    """
    from transformers import AutoConfig

    kind = stated.get("model_type")
    if kind not in FAMILIES:
        why = OTHERS.get(str(kind), f"only {' and '.join(FAMILIES)} are known to be Llamas")
        raise _refused(text, "model_type", kind, why)
    if (named := stated.get("architectures")) and named != [FAMILIES[kind]]:
        raise _refused(text, "architectures", named, f"expected {FAMILIES[kind]}")
    if stated.get("auto_map"):
        raise _refused(text, "auto_map", stated["auto_map"], "it brings code of its own, which is not run")
    if (quantized := stated.get("quantization_config")) is not None:
        method = quantized.get("quant_method", "quantized") if isinstance(quantized, dict) else quantized
        raise _refused(text, "quantization_config", method, "save the model with its weights dequantized")
    try:
        config = AutoConfig.for_model(**stated)
    except Exception as error:  # transformers validates with exceptions of its own
        raise UserError(f"import {text}: config.json: {' '.join(str(error).split())[:300]}") from error
    _check(text, config)
    rope = config.rope_parameters
    scaling = {key: rope[key] for key in ROPE_NUMBERS if key in rope and rope["rope_type"] != "default"}
    if rope["rope_type"] == "linear":
        scaling = {"factor": scaling["factor"]}
    return config, {
        "vocab_size": config.vocab_size,
        "width": config.hidden_size,
        "depth": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "ffn_width": config.intermediate_size,
        "tie_embeddings": config.tie_word_embeddings,
        "rope_base": float(rope["rope_theta"]),
        "rope_scaling": {"rope_type": rope["rope_type"], **scaling} if scaling else None,
        "norm_eps": config.rms_norm_eps,
    }


def _check(text: str, config: Any) -> None:
    width, heads = config.hidden_size, config.num_attention_heads
    for field, why in (("attention_bias", "projections have no bias"), ("mlp_bias", "projections have no bias")):
        if getattr(config, field, False):
            raise _refused(text, field, True, why)
    if config.hidden_act not in ("silu", "swish"):
        raise _refused(text, "hidden_act", config.hidden_act, "the MLP is gated by silu")
    if config.head_dim * heads != width or width % (2 * heads):
        raise _refused(
            text, "head_dim", config.head_dim, f"heads are hidden_size / heads = {width / heads:g} wide, even"
        )
    if heads % config.num_key_value_heads:
        raise _refused(text, "num_key_value_heads", config.num_key_value_heads, f"expected a divisor of {heads}")
    if getattr(config, "sliding_window", None) is not None:
        raise _refused(text, "sliding_window", config.sliding_window, "attention is over the whole sequence")
    if any(layer != "full_attention" for layer in getattr(config, "layer_types", None) or ()):
        raise _refused(text, "layer_types", config.layer_types, "attention is over the whole sequence")
    rope = config.rope_parameters
    if rope.get("rope_type") not in ROPE_TYPES:
        raise _refused(text, "rope_scaling", rope, f"expected rope_type {', '.join(ROPE_TYPES)}")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise _refused(text, "partial_rotary_factor", rope["partial_rotary_factor"], "positions turn whole heads")


def _refused(text: str, field: str, value: Any, why: str) -> UserError:
    return UserError(f"import {text}: {field} is {value!r}, which lrtrain.nn.Decoder has not: {why}")
