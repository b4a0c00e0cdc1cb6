"""A checkpoint with a decoder of any make, as `lrtrain fit` would have saved it, without a run."""

from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer
from torch import nn

from lrtrain.checkpoint.single_file import write_whole
from lrtrain.config.trained_model import build_decoder
from lrtrain.data.tokenizer import train_tokenizer

VOCABULARY = 320
WORDS = "spectral norm factor rank shard token decoder update bound step of a weather station on the hill "
DENSE = {"class_path": "lrtrain.nn.DenseLinear"}
LOW_RANK = {"class_path": "lrtrain.nn.LowRankLinear", "init_args": {"rank": 6}}
SPECTRAL = {"class_path": "lrtrain.nn.SpectralLinear", "init_args": {"rank": 9}}
SELF_GUIDED = {"class_path": "lrtrain.nn.SelfGuidedLinear", "init_args": {"rank": 7}}


def decoder_config(attention: Any = DENSE, mlp: Any = None, **changes: Any) -> dict[str, Any]:
    """A decoder of 2 blocks whose logits are far from zero."""
    sizes = {"vocab_size": VOCABULARY, "width": 48, "depth": 2, "heads": 4, "ffn_width": 80, "embedding_std": 0.5}
    projections = {"attention": attention, "mlp": mlp or attention}
    return {"class_path": "lrtrain.nn.Decoder", "init_args": {**sizes, **projections, **changes}}


def tokenizer() -> Tokenizer:
    """A byte-level BPE of at most `VOCABULARY` tokens, trained on a few words."""
    return train_tokenizer([WORDS * 3], VOCABULARY)


def save(file: Path, decoder: dict[str, Any], tokens: Tokenizer | None = None, **changes: Any) -> Path:
    """Writes a checkpoint of step 3; `changes` are of its configuration, or what replaces its `state_dict`."""
    torch.manual_seed(0)
    made = build_decoder(decoder)
    for module in made.modules():
        if isinstance(module, nn.RMSNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    state = changes.pop("state_dict", {f"decoder.{name}": w for name, w in made.state_dict().items()})
    slot = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}}
    config = {
        "name": "toy",
        "model": {"decoder": decoder, "optimizers": {"hidden": slot, "other": slot}},
        "data": {"path": "nowhere", "block_size": 64, "batch_size": 2},
        "trainer": {"limit_val_batches": None},
        **changes,
    }
    own = {"version": "0.1.0", "config": yaml.safe_dump(config), "tokenizer": (tokens or tokenizer()).to_str()}
    own |= {"rng": [], "validation_due": False}
    file.parent.mkdir(parents=True, exist_ok=True)
    callbacks = {"Throughput": {"tokens_seen": 384}}
    checkpoint = {"state_dict": state, "pytorch-lightning_version": "2.6.6", "global_step": 3, "callbacks": callbacks}
    write_whole({**checkpoint, "optimizer_states": [], "lrtrain": own}, file)
    return file
