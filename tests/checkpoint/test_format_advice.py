"""Which format export recommends: by timing both."""

from functools import partial

import pytest
import torch

from lrtrain.checkpoint.huggingface import format_advice
from lrtrain.checkpoint.huggingface.format_advice import advice, recommended, time_shares
from lrtrain.nn import Decoder, DenseLinear, LowRankLinear, SelfGuidedLinear
from small_decoder import decoder


@pytest.mark.parametrize(
    ("few", "many", "line"),
    [
        (0.7, 0.6, "factorized decodes faster in transformers; vLLM and llama.cpp take merged alone"),
        (0.97, 0.6, "factorized decodes faster in transformers; vLLM and llama.cpp take merged alone"),
        (0.97, 1.03, "merged decodes as fast or faster"),
        (1.3, 1.0, "merged decodes as fast or faster"),
        (1.2, 0.8, "factorized decodes faster for many texts at once, merged otherwise"),
        (0.8, 1.2, "factorized decodes faster for one text at once, merged otherwise"),
    ],
)
def test_the_faster_format_is_named(few: float, many: float, line: str) -> None:
    assert recommended(few, many) == line


def test_few_numbers_take_less_of_the_time_and_many_take_more() -> None:
    sizes = {"vocab_size": 8, "width": 1024, "depth": 2, "heads": 2, "ffn_width": 1024}

    def shares(rank: int) -> list[float]:
        linear = partial(LowRankLinear, rank=rank)
        return time_shares(Decoder(**sizes, attention=linear, mlp=linear), torch.float32)

    assert max(shares(32)) < 0.6
    assert min(shares(1024)) > 1.3


def test_the_decoder_stays_as_it_is_and_not_all_of_a_large_one_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder(attention=partial(LowRankLinear, rank=6), mlp=DenseLinear)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    merged: list[object] = []
    plain = format_advice.dense_weight
    monkeypatch.setattr(format_advice, "dense_weight", lambda one: merged.append(one) or plain(one))
    said = advice(model, "float32")
    assert said is not None
    assert "for 1 text at once" in said
    assert said.endswith("for 32 (timed here, float32)")
    assert len(merged) == 21
    monkeypatch.setattr(format_advice, "ENOUGH", 1)
    merged.clear()
    advice(model, "float16")
    assert len(merged) == 7
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("linear", [DenseLinear, partial(SelfGuidedLinear, rank=5)])
def test_there_is_no_advice_where_nothing_has_factors_to_keep(linear: object) -> None:
    assert advice(decoder(linear), "float32") is None
