"""Rotary frequencies that are lowered, as transformers lowers them."""

from typing import Any

import pytest
import torch

from lrtrain.nn import Decoder, DenseLinear, KVCache, RopeScaling
from lrtrain.nn.rotary import rotary_angles

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("width", "base", "stated"),
    [
        (64, 10000.0, {"rope_type": "linear", "factor": 4.0}),
        (128, 500000.0, {"rope_type": "llama3", "factor": 8.0, **LLAMA3}),
        (64, 500000.0, {"rope_type": "llama3", "factor": 32.0, **LLAMA3}),
        (16, 1e4, {"rope_type": "llama3", "factor": 2.5, **LLAMA3, "original_max_position_embeddings": 64}),
    ],
)
def test_the_angles_are_those_of_transformers(width: int, base: float, stated: dict[str, Any]) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=4 * width,
        num_attention_heads=4,
        max_position_embeddings=2**17,
        rope_parameters={"rope_theta": base, **stated},
    )
    theirs = LlamaRotaryEmbedding(config).inv_freq
    plain = base ** (-torch.arange(0, width, 2) / width)
    scaling = RopeScaling(**stated)
    torch.testing.assert_close(scaling.scaled(plain), theirs, rtol=1e-5, atol=0)
    assert (theirs < 0.9 * plain).any()
    expected = (torch.arange(100)[:, None] * theirs).cos()
    torch.testing.assert_close(rotary_angles(100, width, base, CPU, scaling)[0], expected, rtol=0, atol=2e-4)


def test_llama3_leaves_short_waves_and_divides_long_ones() -> None:
    scaling = RopeScaling("llama3", factor=8.0, **LLAMA3)
    frequencies = torch.tensor([1.0, 2 * torch.pi * 4.01 / 8192, 2 * torch.pi * 0.99 / 8192, 1e-6])
    torch.testing.assert_close(scaling.scaled(frequencies), frequencies / torch.tensor([1.0, 1.0, 8.0, 8.0]))


@torch.no_grad()
def test_a_decoder_computes_with_it_also_from_its_cache() -> None:
    sizes = {"vocab_size": 50, "width": 32, "depth": 2, "heads": 2, "ffn_width": 48, "embedding_std": 0.5}
    model = Decoder(**sizes, attention=DenseLinear, mlp=DenseLinear, rope_scaling=RopeScaling("linear", 4.0))
    plain = Decoder(**sizes, attention=DenseLinear, mlp=DenseLinear)
    plain.load_state_dict(model.state_dict())
    x = torch.randint(0, 50, (2, 9))
    whole = model(x)
    assert (whole - plain(x)).abs().max() > 1e-2
    cache = KVCache(2, 9)
    parts = [model(x[:, :4], cache), *(model(x[:, i : i + 1], cache) for i in range(4, 9))]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("stated", "why"),
    [
        ({"rope_type": "yarn", "factor": 2.0}, "rope_type must be linear or llama3, got yarn"),
        ({"rope_type": "linear", "factor": 0.0}, "factor must be finite and positive, got 0.0"),
        ({"rope_type": "linear", "factor": float("nan")}, "factor must be finite"),
        ({"rope_type": "linear", "factor": 2.0, "low_freq_factor": 1.0}, "linear takes no low_freq_factor"),
        ({"rope_type": "llama3", "factor": 2.0}, "llama3 takes low_freq_factor"),
        (
            {"rope_type": "llama3", "factor": 2.0, **LLAMA3, "high_freq_factor": 1.0},
            "low_freq_factor must be below high_freq_factor, got 1.0 and 1.0",
        ),
        ({"rope_type": "llama3", "factor": 2.0, **LLAMA3, "low_freq_factor": -1.0}, "low_freq_factor must be finite"),
    ],
)
def test_numbers_that_make_no_scaling_are_refused(stated: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        RopeScaling(**stated)
