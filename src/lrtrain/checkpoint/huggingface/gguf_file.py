"""What a GGUF file says of a model and transformers leaves out without a word."""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrtrain.runtime.errors import UserError

TENSORS = re.compile(
    r"(token_embd|output|output_norm|blk\.\d+\.(attn_(norm|q|k|v|output)|ffn_(norm|gate|up|down)))\.weight"
)
"""Names of a Llama's weights in a GGUF file."""
NEEDED = (
    "context_length",
    "block_count",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
)
"""What a Llama's file states; transformers would put a default in its place."""


@dataclass(frozen=True)
class GgufFacts:
    """Attributes: license and pre-tokenizer as the file names them; `types`, those of its tensors, as `Q4_1, F32`."""

    license: str | None
    pre_tokenizer: str | None
    types: str


def check_gguf(path: Path, text: str) -> GgufFacts:
    """Reads the file's names and metadata.

    Raises:
        UserError: the package gguf is missing, or the file says something that transformers would leave out.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"import {text}: transformers needs the package gguf for it: pip install 'lrtrain[hf]'")
    from gguf import GGUFReader

    reader = GGUFReader(path)
    stated = dict(reader.fields)
    kind = _value(stated, "general.architecture")
    if kind == "llama":
        for name in NEEDED:
            if f"llama.{name}" not in stated:
                raise UserError(f"import {text}: its metadata lacks llama.{name}")
        if scaled := [name for name in stated if name.startswith("llama.rope.scal")]:
            value = _value(stated, scaled[0])
            if value not in ("none", 1.0, 0.0):
                raise UserError(
                    f"import {text}: {scaled[0]} is {value!r}, which transformers does not read from a GGUF: "
                    "import the model's folder"
                )
        for tensor in reader.tensors:
            if TENSORS.fullmatch(tensor.name) is None:
                why = "Llama 3's RoPE scaling" if tensor.name.startswith("rope_freqs") else "no weight of a Llama"
                raise UserError(
                    f"import {text}: it holds {tensor.name}, {why}, which transformers does not read from a GGUF: "
                    "import the model's folder"
                )
    types = dict.fromkeys(tensor.tensor_type.name for tensor in reader.tensors)
    return GgufFacts(_value(stated, "general.license"), _value(stated, "tokenizer.ggml.pre"), ", ".join(types))


def _value(fields: dict[str, Any], name: str) -> Any:
    return fields[name].contents() if name in fields else None
