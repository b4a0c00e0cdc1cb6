"""The rules by which a token is drawn, against transformers' in float64, and the draw."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation import logits_process as theirs

from lrtrain.nn import Sampling


def probabilities(rules: Sampling, logits: Tensor, seen: Tensor | None = None) -> Tensor:
    """Of every token, in the order of the vocabulary."""
    weights, tokens = rules.kept(logits if seen is None else rules.penalized(logits, seen))
    if tokens is not None:
        weights = torch.zeros_like(logits, dtype=torch.float64).scatter(-1, tokens, weights)
    return weights / weights.sum(-1, keepdim=True)


def reference(rules: Sampling, logits: Tensor, ids: Tensor) -> Tensor:
    """By transformers' processors, in the order in which its `generate` applies them."""
    scores = theirs.RepetitionPenaltyLogitsProcessor(rules.repetition_penalty)(ids, logits.clone())
    scores = theirs.TemperatureLogitsWarper(rules.temperature)(ids, scores)
    if rules.top_k is not None:
        scores = theirs.TopKLogitsWarper(rules.top_k)(ids, scores)
    if rules.top_p < 1:
        scores = theirs.TopPLogitsWarper(rules.top_p)(ids, scores)
    if rules.min_p > 0:
        scores = theirs.MinPLogitsWarper(rules.min_p)(ids, scores)
    return scores.softmax(-1)


@given(
    temperature=st.floats(0.05, 5),
    top_k=st.none() | st.integers(1, 80),
    top_p=st.just(1.0) | st.floats(0.01, 0.99),
    min_p=st.just(0.0) | st.floats(0.001, 1),
    penalty=st.just(1.0) | st.floats(0.5, 2),
    seed=st.integers(0, 10**6),
    vocabulary=st.sampled_from([5, 60, 3000]),
)
def test_probabilities_are_those_of_transformers_processors(
    temperature: float, top_k: int | None, top_p: float, min_p: float, penalty: float, seed: int, vocabulary: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(3, vocabulary, generator=generator, dtype=torch.float64)
    ids = torch.randint(0, vocabulary, (3, 7), generator=generator)
    seen = torch.zeros(3, vocabulary, dtype=torch.bool).scatter(1, ids, True)
    rules = Sampling(temperature, top_k, top_p, min_p, penalty)
    torch.testing.assert_close(probabilities(rules, logits, seen), reference(rules, logits, ids), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("top_k", "tied"), [(3, 40), (1, 2000), (100, 1500)])
def test_tokens_as_likely_as_the_kth_stay_however_many(top_k: int, tied: int) -> None:
    logits = torch.zeros(1, 5000, dtype=torch.float64)
    logits[0, torch.randperm(5000)[:tied]] = 1
    expected = reference(Sampling(top_k=top_k), logits, torch.zeros(1, 1, dtype=torch.int64))
    torch.testing.assert_close(probabilities(Sampling(top_k=top_k), logits), expected)
    assert int((expected > 0).sum()) == tied


def test_a_nucleus_of_more_tokens_than_are_looked_at_first_is_whole() -> None:
    logits = torch.randn(2, 5000, dtype=torch.float64)
    rules = Sampling(top_p=0.9)
    expected = reference(rules, logits, torch.zeros(2, 1, dtype=torch.int64))
    assert int((expected > 0).sum(-1).min()) > 2000
    torch.testing.assert_close(probabilities(rules, logits), expected)


def test_a_chance_is_where_the_cumulative_distribution_passes_it() -> None:
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log()
    for rules, order in ((Sampling(), [0, 1, 2]), (Sampling(top_k=3), [1, 2, 0])):
        shares = [float(logits[0, token].exp()) for token in order]
        for place, token in enumerate(order):
            inside = sum(shares[:place]) + 0.5 * shares[place]
            assert rules.draw(logits, [inside]).tolist() == [token]
        assert rules.draw(logits, [0.0]).tolist() == order[:1]
        assert rules.draw(logits, [math.nextafter(1, 0)]).tolist() == order[-1:]


@pytest.mark.parametrize("rules", [Sampling(top_p=0.3), Sampling(top_k=2), Sampling(min_p=0.5)])
def test_no_chance_draws_what_is_ruled_out(rules: Sampling) -> None:
    logits = torch.tensor([[-50.0, 1.0, 0.9, 0.0, -50.0]])
    for chance in (0.0, 0.5, math.nextafter(1, 0)):
        assert rules.draw(logits, [chance]).item() in (1, 2)
    no_weight = torch.tensor([[0.0, -1e9]])
    assert Sampling().draw(no_weight, [math.nextafter(1, 0)]).tolist() == [0]
    assert Sampling().draw(no_weight.flip(1), [0.0]).tolist() == [1]


def test_draws_have_the_frequencies_of_the_distribution() -> None:
    logits, rules = torch.randn(1, 20), Sampling(temperature=1.5, top_k=12, top_p=0.9)
    expected = probabilities(rules, logits)[0]
    chances = torch.linspace(0, 1, 10_001, dtype=torch.float64)[:-1].tolist()
    drawn = Counter(rules.draw(logits.expand(len(chances), -1), chances).tolist())
    for token, share in enumerate(expected.tolist()):
        assert drawn[token] / len(chances) == pytest.approx(share, abs=2e-4)


def test_the_likeliest_token_at_temperature_zero_and_at_one_that_nearly_is() -> None:
    logits = torch.randn(4, 50)
    for rules in (Sampling(0), Sampling(1e-42), Sampling(top_k=1), Sampling(top_p=1e-9), Sampling(min_p=1)):
        assert rules.draw(logits, [0.99] * 4).tolist() == logits.argmax(-1).tolist()


def test_a_penalty_moves_the_likeliest_token_too() -> None:
    logits, seen = torch.tensor([[2.0, 1.5, -1.0]]), torch.tensor([[True, False, True]])
    assert Sampling(0, repetition_penalty=2).draw(logits, [0], seen).tolist() == [1]
    torch.testing.assert_close(Sampling(repetition_penalty=2).penalized(logits, seen), torch.tensor([[1.0, 1.5, -2.0]]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -1}, "temperature must be a number of at least 0, got -1"),
        ({"temperature": math.inf}, "temperature must be"),
        ({"temperature": math.nan}, "temperature must be"),
        ({"top_p": 0}, r"top_p must be in \(0, 1\], got 0"),
        ({"top_p": 1.1}, "top_p must be"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"min_p": -0.1}, r"min_p must be in \[0, 1\]"),
        ({"min_p": 2}, "min_p must be"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a number above 0"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**changes)
