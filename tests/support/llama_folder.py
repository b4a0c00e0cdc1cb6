"""Llamas of a few thousand numbers, as transformers itself saves them: folders, and GGUF files."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, processors
from torch import Tensor, nn

import saved_model
from saved_model import VOCABULARY

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
END = "<|endoftext|>"


def model(kind: str = "Llama", **changes: Any) -> Any:
    """A random model whose logits are far from zero."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **changes})
    made = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for name, weight in made.named_parameters():
        if "norm" in name:
            nn.init.uniform_(weight, 0.5, 1.5)
    return made


def save(folder: Path, kind: str = "Llama", dtype: str = "float32", size: str = "1GB", **changes: Any) -> Any:
    """Writes a model, in shards of a size, and its tokenizer; returns the model as transformers loads it in float32."""
    made = model(kind, **changes).to(getattr(torch, dtype))
    made.save_pretrained(folder, max_shard_size=size)
    save_tokenizer(folder)
    return type(made).from_pretrained(folder, dtype=torch.float32).eval()


def save_tokenizer(folder: Path, tokens: Tokenizer | None = None, begin: str | None = None, **special: Any) -> None:
    """Writes a tokenizer as transformers does; it begins every text with a token, if one is given."""
    from transformers import PreTrainedTokenizerFast

    tokens = tokens or saved_model.tokenizer()
    if begin is not None:
        tokens.add_special_tokens([begin])
        pair = [(begin, tokens.token_to_id(begin))]
        tokens.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=pair)
        special = {"bos_token": begin, **special}
    PreTrainedTokenizerFast(tokenizer_object=tokens, **{"eos_token": END, **special}).save_pretrained(folder)


def save_gguf(file: Path, made: Any, **metadata: Any) -> None:
    """Writes a model as llama.cpp's converter does, with further metadata or tensors; None leaves some out."""
    from gguf import GGUFWriter

    config, tokens = made.config, saved_model.tokenizer()
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    stated = {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_parameters["rope_theta"],
        "rope.dimension_count": config.head_dim,
        "vocab_size": config.vocab_size,
    }
    out = GGUFWriter(file, "llama")
    out.add_name("tiny")
    out.add_license("mit")
    for name, value in {**stated, **metadata}.items():
        if isinstance(value, Tensor):
            out.add_tensor(name, value.numpy())
        elif isinstance(value, str):
            out.add_string(f"llama.{name}", value)
        elif value is not None:
            (out.add_uint32 if isinstance(value, int) else out.add_float32)(f"llama.{name}", value)
    vocabulary = {index: token for token, index in tokens.get_vocab().items()}
    out.add_tokenizer_model("gpt2")
    out.add_token_list([vocabulary.get(index, f"[{index}]") for index in range(config.vocab_size)])
    out.add_token_types([3 if vocabulary.get(index) == END else 1 for index in range(config.vocab_size)])
    merges = json.loads(tokens.to_str())["model"]["merges"]
    out.add_token_merges([" ".join(pair) for pair in merges])
    out.add_eos_token_id(tokens.token_to_id(END))
    for name, weight in made.state_dict().items():
        if (theirs := _gguf_name(name)) is None or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        if ".q_proj." in name or ".k_proj." in name:  # llama.cpp turns neighbors, transformers halves
            count = heads if ".q_proj." in name else kv_heads
            weight = weight.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2)
        out.add_tensor(theirs, weight.contiguous().numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def _gguf_name(name: str) -> str | None:
    parts = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    ends = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem = name.removesuffix(".weight")
    if stem in ends:
        return f"{ends[stem]}.weight"
    _, _, index, part = stem.split(".", 3)
    return f"blk.{index}.{parts[part]}.weight" if part in parts else None
