"""Linear layers of any model as projections, in place, and back."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lrtrain.linalg import truncated_svd
from lrtrain.nn import Decoder, DenseLinear, LowRankLinear, SpectralLinear, factorize_, merge_
from lrtrain.nn.noted_ranks import Biased, factorized_ranks

KINDS = {"low_rank": LowRankLinear, "spectral": SpectralLinear}


class Tied(nn.Module):
    """An embedding whose weight the head shares, and two layers between."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.up = nn.Linear(16, 24)
        self.down = nn.Linear(24, 16, bias=False)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.down(self.up(self.embedding(tokens)).relu()))


@pytest.fixture
def model() -> Tied:
    torch.manual_seed(0)
    return Tied()


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_becomes_the_best_approximation_of_its_weight_and_keeps_its_bias(kind: Any, model: Tied) -> None:
    model.down.weight.requires_grad_(False)
    model.eval()
    before = copy.deepcopy(model)
    done = factorize_(model, rank_ratio=0.25, kind=kind)
    p, sigma, q = truncated_svd(before.up.weight.detach(), 4)
    assert isinstance(model.up, Biased)
    torch.testing.assert_close(model.up.projection.materialize(), (p * sigma) @ q.mT)
    assert model.up.bias is not None
    assert torch.equal(model.up.bias, before.up.bias)
    assert type(model.down) is KINDS[kind]
    x = torch.randn(5, 16)
    torch.testing.assert_close(model.up(x), x @ ((p * sigma) @ q.mT).mT + before.up.bias)
    up, down = done.layers
    assert (up.name, up.rank, down.name, down.rank) == ("up", 4, "down", 6)
    whole = torch.linalg.svdvals(before.up.weight.detach().double()).square()
    assert up.energy == pytest.approx(float(whole[:4].sum() / whole.sum()), rel=1e-5)
    assert not any(p.requires_grad for p in model.down.parameters())
    assert all(p.requires_grad for p in model.up.parameters())
    assert not any(module.training for module in model.modules())
    numbers = 24 * 16 + 24 + 16 * 24, 4 * 40 + 24 + 6 * 40 + (10 if kind == "spectral" else 0)
    first, *_, last = str(done).splitlines()
    assert first == f"up: rank 4, {up.energy:.1%} of Σσ²"
    assert last == f"2 layers: {numbers[0]:,} parameters, now {numbers[1]:,}"


def test_a_whole_rank_changes_nothing_and_merging_gives_linear_layers_again(model: Tied) -> None:
    tokens, before = torch.arange(40), copy.deepcopy(model)
    assert "2 have more than before" in str(factorize_(model, energy=1.0))
    torch.testing.assert_close(model(tokens), before(tokens))
    assert merge_(model) == ["up", "down"]
    assert (type(model.up), type(model.down)) == (nn.Linear, nn.Linear)
    torch.testing.assert_close(model(tokens), before(tokens))
    assert model.state_dict().keys() == before.state_dict().keys()


def test_shared_weights_are_left_by_name_and_refused_when_they_are_asked_for(model: Tied) -> None:
    done = factorize_(model, rank=3)
    assert done.left == {"head": "it shares its weight with embedding.weight"}
    assert model.head.weight is model.embedding.weight
    with pytest.raises(ValueError, match=r"head cannot be replaced: it shares its weight with embedding\.weight"):
        factorize_(model, rank=3, include="head")


def test_patterns_choose_and_one_that_matches_nothing_is_refused(model: Tied) -> None:
    factorize_(model, rank=3, exclude="u*")
    assert factorized_ranks(model) == {"low_rank": {"down": 3}, "spectral": {}}
    factorize_(model, rank=2, kind="spectral", include=["up"])
    assert factorized_ranks(model) == {"low_rank": {"down": 3}, "spectral": {"up": 2}}
    with pytest.raises(ValueError, match="the pattern 'mlp' matches no linear layer; there are: up, head"):
        factorize_(model, rank=2, include=["up", "mlp"])
    factorize_(model, rank=2, include="up")
    assert factorized_ranks(model) == {"low_rank": {"up": 2, "down": 3}, "spectral": {}}


@pytest.mark.parametrize(
    ("size", "line"),
    [
        ({}, "give one of rank_ratio, rank, energy"),
        ({"rank": 2, "energy": 0.5}, "give one of"),
        ({"rank": 17}, "up: rank must be between 1 and min"),
        ({"energy": 1.5}, r"up: energy must be in \(0, 1\]"),
        ({"rank": 2, "kind": "tucker"}, "kind must be low_rank or spectral"),
    ],
)
def test_what_cannot_be_done_leaves_the_model_as_it_was(size: Any, line: str, model: Tied) -> None:
    with pytest.raises(ValueError, match=line):
        factorize_(model, **size)
    assert (type(model.up), type(model.down)) == (nn.Linear, nn.Linear)


def test_a_weight_that_is_not_finite_is_refused_by_name_before_any_layer_is_replaced(model: Tied) -> None:
    with torch.no_grad():
        model.down.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="down: its weight holds NaN"):
        factorize_(model, rank=2)
    assert type(model.up) is nn.Linear


def test_a_layer_whose_weight_others_read_is_left() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    done = factorize_(layer, rank=4)
    assert [one.name for one in done.layers] == ["linear1", "linear2"]
    assert done.left == {"self_attn.out_proj": "NonDynamicallyQuantizableLinear is more than an nn.Linear"}
    assert layer(torch.randn(1, 3, 16)).isfinite().all()


def test_half_precision_and_device_stay() -> None:
    layer = nn.Sequential(nn.Linear(16, 24, dtype=torch.bfloat16))
    before = layer[0].weight.detach().clone()
    factorize_(layer, energy=1.0)
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(layer[0].projection.materialize(), before, rtol=0.05, atol=0.01)
    with pytest.raises(ValueError, match="0: its weight is on the meta device"):
        factorize_(nn.Sequential(nn.Linear(4, 4, device="meta"), nn.Linear(4, 4)), rank=2)
    planned = nn.Sequential(nn.Linear(4, 4, device="meta"))
    assert factorize_(planned, rank=2).layers[0].rank == 2
    assert sum(p.numel() for p in planned.parameters()) == 20


def test_projections_of_ours_change_their_kind_and_the_head_of_a_decoder_stays() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "width": 16, "depth": 1, "heads": 2, "ffn_width": 24}
    decoder = Decoder(**sizes, attention=DenseLinear, mlp=DenseLinear)  # type: ignore[arg-type]
    tokens = torch.arange(12)[None]
    before = decoder.logits(decoder(tokens))
    assert factorize_(decoder, energy=1.0).left == {"head": "it is the output head"}
    torch.testing.assert_close(decoder.logits(decoder(tokens)), before)
    factorize_(decoder, energy=1.0, kind="spectral")
    assert not factorized_ranks(decoder)["low_rank"]
    torch.testing.assert_close(decoder.logits(decoder(tokens)), before)
    with pytest.raises(ValueError, match=r"rank 16 of a weight of rank 8: 8 columns would be zero"):
        factorize_(factorized_to(decoder, 8), rank=16)


def factorized_to(decoder: Decoder, rank: int) -> Decoder:
    merge_(decoder)
    factorize_(decoder, rank=rank, kind="spectral", include="blocks.*")
    return decoder
