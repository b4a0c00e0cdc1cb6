"""Which format export recommends, by the numbers that a token reads."""

from functools import partial

import pytest
import torch
from torch import nn

from lrtrain.checkpoint.huggingface.format_advice import WORTH_KEEPING, advice, reads_of
from lrtrain.nn import DenseLinear, LowRankLinear, SelfGuidedLinear, SpectralLinear
from small_decoder import decoder

ATTENTION, MLP, HEAD = 3 * 4 * 48 * 48, 3 * 3 * 48 * 80, 97 * 48


@pytest.mark.parametrize("tie", [False, True])
def test_numbers_are_those_of_projections_and_head(tie: bool) -> None:
    merged = ATTENTION + MLP + HEAD
    assert reads_of(decoder(tie_embeddings=tie)).merged == merged
    low = reads_of(decoder(partial(LowRankLinear, rank=6), tie_embeddings=tie))
    assert (low.merged, low.factorized) == (merged, 3 * 6 * (4 * 96 + 3 * 128) + HEAD)
    mixed = reads_of(decoder(attention=DenseLinear, mlp=partial(SpectralLinear, rank=5), tie_embeddings=tie))
    assert mixed.factorized == ATTENTION + 3 * 3 * 5 * (48 + 80 + 1) + HEAD


def test_the_share_is_that_of_the_parameters_but_the_embedding() -> None:
    model = decoder(partial(LowRankLinear, rank=7))
    left_out = model.embedding.weight.numel() + sum(m.weight.numel() for m in model.modules() if type(m) is nn.RMSNorm)
    reads = reads_of(model)
    assert reads.factorized == sum(p.numel() for p in model.parameters()) - left_out
    assert reads.share == reads.factorized / reads.merged


@pytest.mark.parametrize(
    ("linear", "keep", "line"),
    [
        (
            partial(LowRankLinear, rank=6),
            False,
            "--factorized would decode faster in transformers: a token reads 0.02M",
        ),
        (
            partial(SpectralLinear, rank=6),
            True,
            "factorized is the faster format: a token reads 0.02M numbers factorized",
        ),
        (partial(LowRankLinear, rank=40), True, "merged would decode as fast or faster: a token reads"),
        (partial(LowRankLinear, rank=40), False, "merged is the faster format: a token reads"),
    ],
)
def test_the_faster_format_is_named(linear: object, keep: bool, line: str) -> None:
    reads = reads_of(decoder(linear))
    assert (reads.share < WORTH_KEEPING) == ("factorized" in line.partition(":")[0])
    said = advice(reads, keep)
    assert said is not None
    assert said.startswith(line)


@pytest.mark.parametrize("linear", [DenseLinear, partial(SelfGuidedLinear, rank=5)])
def test_there_is_no_advice_where_nothing_has_factors_to_keep(linear: object) -> None:
    with torch.no_grad():
        assert advice(reads_of(decoder(linear)), False) is None
