"""Our decoder as transformers' Llama: its configuration, and which weight has which name."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lrtrain.checkpoint.huggingface.safetensors_shards import Entry
from lrtrain.nn import Decoder
from lrtrain.nn.projection import projections
from lrtrain.nn.rewriting import check_computes, dense_weight, factors, has_dense_weight, through_factors
from lrtrain.runtime.errors import UserError

PROJECTIONS = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
ENDS = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
MODELING = "modeling_factorized_llama"


def llama_name(ours: str) -> str:
    """`model.layers.0.mlp.up_proj` of `blocks.0.mlp.up`."""
    if ours in ENDS:
        return ENDS[ours]
    _, index, part = ours.split(".", 2)
    return f"model.layers.{index}.{ {**PROJECTIONS, **NORMS}[part] }"


def llama_config(decoder: Decoder, length: int, end_of_text: int, keep_factors: bool) -> dict[str, Any]:
    """The entries of config.json, as versions 4 and 5 of transformers, and what else reads it, know them.

    Args:
        decoder: Whose weights lie beside it.
        length: Tokens of the longest sequence that it was trained on.
        end_of_text: The token between documents, with which a text begins as well.
        keep_factors: Whether factorized projections keep their factors.
    """
    block: Any = decoder.blocks[0]
    attention = block.attention
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": decoder.head_VD.shape[0],
        "hidden_size": decoder.width,
        "intermediate_size": block.mlp.gate.out_features,
        "num_hidden_layers": len(decoder.blocks),
        "num_attention_heads": attention.query.out_features // decoder.head_width,
        "num_key_value_heads": attention.key.out_features // decoder.head_width,
        "head_dim": decoder.head_width,
        "hidden_act": "silu",
        "max_position_embeddings": length,
        "rms_norm_eps": decoder.norm.eps,
        **_rope(decoder),
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": decoder.head is None,
        "use_cache": True,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "pad_token_id": None,  # a padding index would keep that token's embedding from being trained
    }
    if keep_factors:
        ranks: dict[str, dict[str, int]] = {"low_rank": {}, "spectral": {}}
        for name, one in projections(decoder).items():
            if kept := factors(one):
                kind, parts = kept
                ranks[kind][llama_name(name)] = next(iter(parts.values())).shape[1]
        config |= {
            "architectures": ["FactorizedLlamaForCausalLM"],
            "model_type": "factorized_llama",
            "auto_map": {
                "AutoConfig": f"{MODELING}.FactorizedLlamaConfig",
                "AutoModelForCausalLM": f"{MODELING}.FactorizedLlamaForCausalLM",
            },
            **ranks,
        }
    return config


def _rope(decoder: Decoder) -> dict[str, Any]:
    """What version 5 of transformers reads, `rope_parameters`, and what version 4 does."""
    scaling = decoder.rope_scaling
    stated = {} if scaling is None else {name: value for name, value in asdict(scaling).items() if value is not None}
    return {
        "rope_theta": decoder.rope_base,
        **({"rope_scaling": stated} if stated else {}),
        "rope_parameters": {"rope_type": "default", "rope_theta": decoder.rope_base, **stated},
    }


def check_exportable(decoder: Decoder, keep_factors: bool) -> None:
    """Refuses what is no Llama, whether or not the weights are there.

    Raises:
        UserError: another class of decoder, or a projection without a dense weight.
    """
    if type(decoder) is not Decoder:
        name = f"{type(decoder).__module__}.{type(decoder).__qualname__}"
        raise UserError(
            f"export: model.decoder is {name}, which may compute anything: only lrtrain.nn.Decoder is a Llama"
        )
    for name, one in projections(decoder).items():
        if not (keep_factors and factors(one)) and not has_dense_weight(one):
            raise UserError(
                f"export: {type(one).__module__}.{type(one).__qualname__} ({name}) has no dense weight to export: "
                "give the class a method materialize() -> Tensor (out_features, in_features)"
            )


def entries(decoder: Decoder, keep_factors: bool) -> Iterator[Entry]:
    """All tensors of the folder, in the order of the layers; each is computed from the decoder when it is made.

    Making one raises ValueError where a projection does not compute what its weight or its factors say.
    """
    yield _weight("embedding", decoder.embedding)
    for index, block in enumerate(decoder.blocks):
        for part in NORMS:
            yield _weight(f"blocks.{index}.{part}", block.get_submodule(part))
        for part in PROJECTIONS:
            yield from _projection(f"blocks.{index}.{part}", block.get_submodule(part), keep_factors)
    yield _weight("norm", decoder.norm)
    if decoder.head is not None:
        yield _weight("head", decoder.head)


def _weight(name: str, module: Any) -> Entry:
    return Entry(f"{llama_name(name)}.weight", tuple(module.weight.shape), lambda: module.weight)


def _projection(name: str, module: Any, keep_factors: bool) -> Iterator[Entry]:
    theirs = llama_name(name)
    kept = factors(module) if keep_factors else None
    if kept is None:

        def dense() -> Tensor:
            weight = dense_weight(module)
            check_computes(module, lambda x: F.linear(x, weight), name)
            return weight

        yield Entry(f"{theirs}.weight", (module.out_features, module.in_features), dense)
        return
    first = next(iter(kept[1]))
    for part, parameter in kept[1].items():

        def factor(part: str = part) -> Tensor:
            of = factors(module)
            assert of is not None
            if part == first:
                check_computes(module, lambda x: through_factors(x, *of), name)
            return of[1][part]

        yield Entry(f"{theirs}.{part}", tuple(parameter.shape), factor)
