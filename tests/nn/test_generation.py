"""The engine: what follows many prompts at once is what follows each by itself, and what transformers computes."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

import saved_model
from lrtrain.checkpoint.huggingface.exported_folder import write_folder
from lrtrain.config.trained_model import load
from lrtrain.nn import Continuation, Decoder, LowRankLinear, Sampling, SpectralLinear, generate
from saved_model import LOW_RANK, SPECTRAL, VOCABULARY, decoder_config
from small_decoder import VOCAB, decoder

GREEDY = Sampling(temperature=0)
LENGTHS = (5, 1, 17, 9, 9)


def prompts(vocabulary: int = VOCAB) -> list[list[int]]:
    return [torch.randint(0, vocabulary, (length,)).tolist() for length in LENGTHS]


def greedily(model: Decoder, text: list[int], count: int) -> list[int]:
    """A plain reference without a cache."""
    text = [*text]
    with torch.no_grad():
        for _ in range(count):
            text.append(int(model.logits(model(torch.tensor([text])))[0, -1].argmax()))
    return text[-count:]


def tokens(found: list[Continuation]) -> list[list[int]]:
    return [one.tokens for one in found]


@pytest.mark.parametrize(
    ("linear", "changes"),
    [(LOW_RANK, {}), (SPECTRAL, {"kv_heads": 2}), (LOW_RANK, {"kv_heads": 1, "tie_embeddings": True})],
    ids=["low-rank", "spectral, grouped", "multi-query, tied"],
)
def test_greedy_tokens_are_those_of_transformers_on_the_exported_model(
    linear: Any, changes: dict[str, Any], tmp_path: Path
) -> None:
    file = saved_model.save(tmp_path / "a.ckpt", decoder_config(linear, **changes))
    exported, tokenizer = load(file)
    write_folder(exported, tokenizer, tmp_path / "out", 64, False, "float32", 5e9, lambda written: {})
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    theirs.generation_config.eos_token_id = None  # all rows go on to the end
    options = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    given, width = prompts(VOCABULARY), max(LENGTHS)
    alone = [theirs.generate(torch.tensor([p]), **options)[0, len(p) :].tolist() for p in given]
    ids = torch.tensor([[0] * (width - len(p)) + p for p in given])
    attended = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in given])
    together = theirs.generate(ids, attention_mask=attended, **options)[:, width:].tolist()
    ours, _ = load(file)
    assert tokens(generate(ours, given, 40, GREEDY)) == alone == together
    assert [tokens(generate(ours, [p], 40, GREEDY))[0] for p in given] == alone
    assert len({tuple(row) for row in alone}) == len(given)


@pytest.mark.parametrize("linear", [partial(LowRankLinear, rank=9), partial(SpectralLinear, rank=9)])
def test_greedy_tokens_are_the_likeliest_of_the_whole_text_however_it_is_said(linear: Any) -> None:
    model = decoder(linear)
    expected = [greedily(model, prompt, 12) for prompt in prompts_of(0)]
    for rules in (GREEDY, Sampling(temperature=1e-42), Sampling(top_p=1e-6), Sampling(top_k=1)):
        assert tokens(generate(model, prompts_of(0), 12, rules)) == expected


def prompts_of(seed: int) -> list[list[int]]:
    torch.manual_seed(seed)
    return prompts()


def test_a_rows_draws_do_not_depend_on_its_batch_or_the_number_of_samples() -> None:
    model, given = decoder(), prompts()
    seeds = ["a", 7, "c", 8, 9]
    rules = Sampling(temperature=1.2, top_p=0.95)
    batch = generate(model, given, 20, rules, samples=3, seeds=seeds)
    assert batch == generate(model, given, 20, rules, samples=3, seeds=seeds)
    for number, (prompt, seed) in enumerate(zip(given, seeds, strict=True)):
        alone = generate(model, [prompt], 20, rules, seeds=[seed], samples=2)
        assert tokens(alone) == tokens(batch[3 * number : 3 * number + 2])
    assert len({tuple(row) for row in tokens(batch)}) == 15
    assert tokens(generate(model, given[3:], 20, rules, seeds=seeds[3:])) == tokens([batch[9], batch[12]])


def test_the_seed_is_the_prompts_place_when_none_is_given() -> None:
    model, given = decoder(), prompts()
    assert generate(model, given, 5) == generate(model, given, 5, seeds=range(5))
    assert tokens(generate(model, [[3], [3]], 9))[0] != tokens(generate(model, [[3], [3]], 9))[1]


def test_log_probabilities_are_the_models_own_whatever_rules_drew_the_token() -> None:
    model = decoder()
    rules = Sampling(temperature=2, top_k=5, repetition_penalty=1.5)
    for prompt, one in zip(given := prompts(), generate(model, given, 10, rules), strict=True):
        with torch.no_grad():
            logits = model.logits(model(torch.tensor([prompt + one.tokens])))[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(one.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(one.log_probabilities), expected, rtol=0, atol=1e-4)


def test_a_penalty_counts_the_prompt_and_what_was_drawn_of_each_row() -> None:
    model, given = decoder(), prompts()
    for prompt, row in zip(given, tokens(generate(model, given, 30, Sampling(0, repetition_penalty=1e6))), strict=True):
        assert len(set(row)) == 30
        assert not {*row} & {*prompt}


def test_rows_end_where_each_ends_and_the_others_go_on_unmoved() -> None:
    model, given = decoder(), prompts()
    whole = tokens(generate(model, given, 30, GREEDY))
    stops = {whole[0][3], whole[2][11], whole[4][20]}
    expected = [next((i for i, token in enumerate(row) if token in stops), 30) for row in whole]
    assert len({*expected}) >= 4
    found = generate(model, given, 30, GREEDY, stop_tokens=stops)
    assert tokens(found) == [row[:end] for row, end in zip(whole, expected, strict=True)]
    assert [one.ending for one in found] == ["stop token" if end < 30 else "length" for end in expected]
    assert [len(one.log_probabilities) for one in found] == expected


def test_a_watch_sees_every_token_as_it_is_drawn_and_ends_rows() -> None:
    model, given = decoder(), prompts()
    whole = tokens(generate(model, given, 12, GREEDY, samples=2))
    seen: list[list[int]] = [[] for _ in whole]

    def watch(row: int, token: int) -> bool:
        seen[row].append(token)
        return len(seen[row]) == row + 1

    found = generate(model, given, 12, GREEDY, samples=2, watch=watch)
    assert seen == tokens(found) == [row[: number + 1] for number, row in enumerate(whole)]
    assert {one.ending for one in found} == {"stopped"}


def test_the_decoder_is_given_no_more_than_the_context() -> None:
    model, given = decoder(), prompts()
    found = generate(model, given, 8, GREEDY, context=17)
    assert [len(one.tokens) for one in found] == [8, 8, 1, 8, 8]
    assert [one.ending for one in found] == ["length", "length", "context", "length", "length"]
    assert tokens(found) == [
        row[: len(one.tokens)] for row, one in zip(tokens(generate(model, given, 8, GREEDY)), found, strict=True)
    ]
    (full,) = generate(model, [given[3]], 9, GREEDY, context=17)
    assert (len(full.tokens), full.ending) == (9, "length")
    with pytest.raises(ValueError, match="prompt 2 has 17 tokens, and the context 16"):
        generate(model, given, 8, GREEDY, context=16)


def test_each_prompt_is_computed_once_and_each_token_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = decoder(), []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda x, cache: sizes.append(tuple(x.shape)) or forward(x, cache))
    generate(model, [[1, 2, 3], [4]], 5, samples=4)
    assert sizes == [(2, 3), *[(8, 1)] * 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": [[1], []]}, "prompt 1 has no token"),
        ({"prompts": []}, "prompts must be at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"seeds": [1, 2]}, "2 seeds for 1 prompts"),
    ],
)
def test_what_cannot_be_continued_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(decoder(), **{"prompts": [[1]], "max_new_tokens": 1, **changes})


def test_a_model_of_nan_is_told() -> None:
    model = decoder()
    nn.init.constant_(model.norm.weight, float("nan"))
    with pytest.raises(FloatingPointError, match="its weights hold NaN or infinities"):
        generate(model, [[1]], 1)
