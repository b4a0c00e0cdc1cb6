"""The decoder: parity with transformers, causality, cache, sizes."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lrtrain.nn import Decoder, DenseLinear, LowRankLinear, SpectralLinear

VOCAB = 97


def decoder(linear: object = DenseLinear, **changes: object) -> Decoder:
    sizes = {"vocab_size": VOCAB, "width": 48, "depth": 3, "heads": 4, "ffn_width": 80, "embedding_std": 0.5}
    return Decoder(**{"attention": linear, "mlp": linear, **sizes, **changes})


def tokens(batch: int = 2, length: int = 11) -> Tensor:
    return torch.randint(0, VOCAB, (batch, length))


# Parity


@pytest.mark.parametrize(
    "changes",
    [{}, {"kv_heads": 2}, {"kv_heads": 1, "rope_base": 500.0}, {"tie_embeddings": True}, {"norm_eps": 1e-2}],
    ids=["plain", "grouped", "multi-query, other rope base", "tied", "other epsilon"],
)
def test_logits_equal_those_of_transformers_llama(changes: dict[str, object]) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = decoder(**changes)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=changes.get("kv_heads", 4),
        rope_parameters={"rope_type": "default", "rope_theta": changes.get("rope_base", 10000.0)},
        rms_norm_eps=changes.get("norm_eps", 1e-5),
        tie_word_embeddings=changes.get("tie_embeddings", False),
    )
    theirs = LlamaForCausalLM(config).eval()
    weights = {"model.embed_tokens.weight": ours.embedding.weight, "model.norm.weight": ours.norm.weight}
    weights["lm_head.weight"] = ours.head_VD
    for index, block in enumerate(ours.blocks):
        nn.init.uniform_(block.attention_norm.weight, 0.5, 1.5)
        nn.init.uniform_(block.mlp_norm.weight, 0.5, 1.5)
        layer = f"model.layers.{index}"
        weights[f"{layer}.input_layernorm.weight"] = block.attention_norm.weight
        weights[f"{layer}.post_attention_layernorm.weight"] = block.mlp_norm.weight
        for name, module in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output")):
            weights[f"{layer}.self_attn.{name}_proj.weight"] = getattr(block.attention, module).weight
        for name in ("gate", "up", "down"):
            weights[f"{layer}.mlp.{name}_proj.weight"] = getattr(block.mlp, name).weight
    theirs.load_state_dict({name: weight.detach() for name, weight in weights.items()}, strict=True)
    x = tokens()
    with torch.no_grad():
        expected, logits = theirs(x).logits, ours.logits(ours(x))
    assert float(expected.std()) > 0.5
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)


# Behavior


@pytest.mark.parametrize(
    "linear", [DenseLinear, partial(LowRankLinear, rank_ratio=0.25), partial(SpectralLinear, rank=8)]
)
def test_no_position_sees_a_later_token(linear: object) -> None:
    model, x = decoder(linear), tokens()
    changed = x.clone()
    changed[:, 6] = (changed[:, 6] + 1) % VOCAB
    with torch.no_grad():
        before, after = model(x), model(changed)
    torch.testing.assert_close(after[:, :6], before[:, :6], rtol=0, atol=1e-6)
    assert (after[:, 6:] - before[:, 6:]).abs().amax(dim=(0, 2)).min() > 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 50}, "width must be a multiple"),
        ({"width": 4}, "width must be a multiple"),
        ({"width": 0}, "width must be at least 1"),
        ({"heads": 0}, "heads must be at least 1"),
        ({"kv_heads": 3}, "kv_heads"),
        ({"kv_heads": 0}, "kv_heads"),
        ({"depth": 0}, "depth"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"ffn_width": -1}, "ffn_width"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoder(**changes)


def test_attention_and_mlp_projections_come_from_their_own_callables() -> None:
    model = decoder(attention=partial(LowRankLinear, rank=4), mlp=partial(SpectralLinear, rank=6))
    for block in model.blocks:
        assert {type(m) for m in block.attention.children()} == {LowRankLinear}
        assert {type(m) for m in block.mlp.children()} == {SpectralLinear}


# Counts


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_tying_saves_the_head_and_shares_its_weight() -> None:
    tied, untied = decoder(tie_embeddings=True), decoder()
    assert count(untied) - count(tied) == VOCAB * 48
    assert tied.head_VD is tied.embedding.weight
    assert untied.head_VD is not untied.embedding.weight


PUBLISHED = {
    "S": ({"width": 768, "depth": 12, "heads": 12, "ffn_width": 2048}, 134.11, 93.60),
    "M": ({"width": 1280, "depth": 20, "heads": 20, "ffn_width": 3584}, 488.30, 296.93),
    "L": ({"width": 1536, "depth": 24, "heads": 24, "ffn_width": 4096}, 777.86, 453.85),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameter_counts_are_the_published_ones(size: str) -> None:
    sizes, dense_millions, low_rank_millions = PUBLISHED[size]
    with torch.device("meta"):
        dense = decoder(vocab_size=32000, **sizes)
        low_rank = decoder(partial(LowRankLinear, rank_ratio=0.25), vocab_size=32000, **sizes)
    assert round(count(dense) / 1e6, 2) == dense_millions
    assert round(count(low_rank) / 1e6, 2) == low_rank_millions
    assert low_rank.dense_equivalent() == dense.dense_equivalent() == count(dense)


@pytest.mark.parametrize("linear", [DenseLinear, partial(LowRankLinear, rank=6)])
@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True}, {"kv_heads": 2}])
def test_flops_per_token_are_those_of_the_forward_pass(linear: object, changes: dict[str, object]) -> None:
    model = decoder(linear, **changes)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.logits(model(tokens(1, 16)))
    assert counter.get_total_flops() == 16 * model.flops_per_token(16)
