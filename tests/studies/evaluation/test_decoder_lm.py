"""The checkpoint's model answers as lm-eval's own `hf` model answers for the exported folder."""

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

import llama_folder
import saved_model
from lrtrain.cli.main import main
from lrtrain.config.export_settings import Export
from lrtrain.config.exporting import export
from lrtrain.config.trained_model import build_decoder, load
from lrtrain.nn import Decoder
from lrtrain.nn.generation import Sampling, generate
from lrtrain.runtime.errors import UserError
from lrtrain.studies.evaluation.continuation_scores import arranged, score
from lrtrain.studies.evaluation.decoder_lm import DecoderLM
from lrtrain.studies.evaluation.evaluated_model import trained_model
from ranks import on_ranks
from saved_model import DENSE, LOW_RANK, SPECTRAL, WORDS, decoder_config

CONTEXT = 64  # of saved_model
WORD_LIST = WORDS.split()


def words(count: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORD_LIST, k=count))


def asked(kind: str, *arguments: Any) -> list[Instance]:
    return [Instance(kind, {}, one, index) for index, one in enumerate(arguments)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model.save(tmp_path_factory.mktemp("model") / "step-00000003.ckpt", decoder_config(LOW_RANK))


@pytest.fixture(scope="module")
def ours(checkpoint: Path) -> DecoderLM:
    return DecoderLM(*load(checkpoint), length=CONTEXT, batch_size=3)


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> HFLM:
    folder = checkpoint.parent / "export"
    export(checkpoint, folder, Export("merged"), say=lambda line: None)
    return HFLM(str(folder), device="cpu", batch_size=3)


def test_both_have_the_same_context_and_the_same_token_before_a_document(ours: DecoderLM, theirs: HFLM) -> None:
    assert (ours.max_length, ours.prefix_token_id) == (theirs.max_length, theirs.prefix_token_id)


def test_loglikelihoods_agree_with_those_of_the_export(ours: DecoderLM, theirs: HFLM) -> None:
    shared = words(12, 1)
    greedy = likeliest(ours, shared)
    pairs = [
        *((shared, f" {words(count, 9 + count)}") for count in (1, 2, 3, 5)),  # a context that several follow
        *((words(4, 2), f" {answer}") for answer in "ABCD"),  # answers of one token
        (shared, greedy),
        ("", words(3, 3)),  # nothing before it but the end-of-text token
        ("", " hill"),
        (f"{words(2, 4)} ", "station"),  # the space is the continuation's
        ("hi", "ll on the hill step of a norm"),  # the border is inside what would be one token
        (words(90, 5), f" {words(3, 6)}"),  # the context is cut at its beginning
        (words(90, 5), f" {words(4, 8)}"),
        ("x", " ".join(WORD_LIST[:9])),
        ("Grüße, 東京\n", "été 🎈"),
    ]
    requests = asked("loglikelihood", *pairs)
    mine, other = ours.loglikelihood(requests), theirs.loglikelihood(requests)
    assert [p for p, _ in mine] == pytest.approx([p for p, _ in other], abs=2e-4)
    assert [same for _, same in mine] == [same for _, same in other]
    assert mine[8][1], "the continuation that is the likeliest one"
    assert not mine[0][1]


def likeliest(model: DecoderLM, context: str) -> str:
    """What the model itself writes after a context, where that is the same text again as tokens."""
    (found,) = generate(model.decoder, [model.tok_encode(context)], 2, Sampling(temperature=0))
    text = model._tokenizer.decode(found.tokens)
    assert model.tok_encode(context + text) == model.tok_encode(context) + found.tokens
    return str(text)


def test_what_is_longer_than_the_context_is_counted(checkpoint: Path) -> None:
    model = DecoderLM(*load(checkpoint), length=16, batch_size=3)
    model.loglikelihood(asked("loglikelihood", (words(40, 1), " hill"), ("a", " hill"), (words(40, 2), " step")))
    assert (model.cut, model.asked) == (2, 3)


@pytest.mark.parametrize("continuation", ["", words(60, 1)], ids=["empty", "too long"])
def test_a_continuation_that_cannot_be_scored_is_refused(checkpoint: Path, continuation: str) -> None:
    model = DecoderLM(*load(checkpoint), length=16, batch_size=3)
    with pytest.raises(UserError, match=r"the continuation .* has \d+ tokens, and the context 16"):
        model.loglikelihood(asked("loglikelihood", ("a", continuation)))


def test_rolling_loglikelihoods_agree_for_texts_of_any_length(ours: DecoderLM, theirs: HFLM) -> None:
    tokens = ours.tok_encode(words(200, 7))
    cut = [ours._tokenizer.decode(tokens[:count]) for count in (1, CONTEXT - 1, CONTEXT, CONTEXT + 1, 3 * CONTEXT + 5)]
    requests = asked("loglikelihood_rolling", *((text,) for text in (*cut, "a", "été 🎈", "")))
    found = ours.loglikelihood_rolling(requests)
    assert found == pytest.approx(theirs.loglikelihood_rolling(requests), rel=1e-5, abs=2e-4)
    assert found[-1] == 0


def test_generated_texts_agree(ours: DecoderLM, theirs: HFLM) -> None:
    short = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0}
    free = ours.generate_until(asked("generate_until", (words(5, 1), short)))[0]
    assert free
    stopping = {**short, "until": [free[len(free) // 2 :][:2]]}
    asks = [
        *((words(count, count), short) for count in (1, 3, 9, 90)),
        (words(5, 1), stopping),
        (words(5, 1), {**short, "max_gen_toks": 3}),
    ]
    requests = asked("generate_until", *asks)
    mine = ours.generate_until(requests)
    assert mine == theirs.generate_until(requests)
    assert mine[4] == free.split(stopping["until"][0])[0]


def test_draws_are_the_same_whatever_the_batch(checkpoint: Path) -> None:
    settings = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 0.9, "top_p": 0.9}
    requests = asked("generate_until", *((words(count, count), settings) for count in (2, 5, 9)))
    one, three = (DecoderLM(*load(checkpoint), length=CONTEXT, batch_size=size) for size in (1, 3))
    assert one.generate_until(requests) == three.generate_until(requests)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"num_beams": 4, "max_gen_toks": 8}, "num_beams"), ({"max_gen_toks": 64}, "64 new tokens")],
    ids=["a rule that there is not", "more than fits"],
)
def test_what_cannot_be_generated_is_refused(ours: DecoderLM, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ours.generate_until(asked("generate_until", ("a", settings)))


def test_a_control_token_that_a_text_spells_is_text_as_in_training(ours: DecoderLM) -> None:
    assert ours.eot_token_id not in ours.tok_encode("a <|endoftext|> b")


def test_weights_that_are_not_finite_give_no_figures(checkpoint: Path) -> None:
    decoder, tokenizer = load(checkpoint)
    decoder.blocks[0].mlp.down.A.data[0, 0] = float("nan")
    model = DecoderLM(decoder, tokenizer, CONTEXT, 3)
    with pytest.raises(FloatingPointError, match="NaN"):
        model.loglikelihood(asked("loglikelihood", ("a", " b")))


# A context that several continuations follow


def decoder(kind: Any, **changes: Any) -> Decoder:
    torch.manual_seed(0)
    return build_decoder(decoder_config(kind, **changes)).eval()


def draw(seed: int) -> list[tuple[list[int], list[int]]]:
    """Requests of which some have their context in common."""
    drawn = random.Random(seed)

    def some(least: int, most: int) -> list[int]:
        return drawn.choices(range(300), k=drawn.randint(least, most))

    return [(context, some(1, 9)) for context in (some(1, 40) for _ in range(6)) for _ in range(drawn.randint(1, 5))]


@pytest.mark.parametrize(
    "model",
    [decoder(DENSE), decoder(SPECTRAL), decoder(LOW_RANK, kv_heads=2, tie_embeddings=True)],
    ids=["dense", "spectral", "grouped queries"],
)
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_sharing_a_context_changes_no_score(model: Decoder, seed: int) -> None:
    requests = draw(seed)
    found = []
    for sharing in (False, True):
        batches = arranged(requests, 4, sharing)
        assert all(sum(len(branch.continuations) for branch in batch) <= 4 for batch in batches)
        found.append({number: one for batch in batches for number, one in score(model, batch).items()})
    whole, shared = ([one[number] for number in range(len(requests))] for one in found)
    assert [p for p, _ in shared] == pytest.approx([p for p, _ in whole], abs=2e-4)
    assert [greedy for _, greedy in shared] == [greedy for _, greedy in whole]


@torch.no_grad()
def test_a_shared_context_goes_through_the_decoder_once() -> None:
    model, lengths = decoder(DENSE), []
    model.register_forward_pre_hook(lambda _, arguments: lengths.append(arguments[0].numel()))
    requests = [([1] * 50, [2, token, 4]) for token in range(4)]
    for sharing, tokens in ((True, 50 + 4 * 2), (False, 0)):
        lengths.clear()
        for batch in arranged(requests, 8, sharing):
            score(model, batch)
        assert sum(lengths) == tokens  # unshared it is the loss that gets them


@pytest.mark.parametrize("begin", [None, "<s>"])
def test_an_imported_model_answers_as_the_folder_that_it_comes_from(begin: str | None, tmp_path: Path) -> None:
    source, checkpoint = tmp_path / "source", tmp_path / "model.ckpt"
    llama_folder.save(source, vocab_size=384)
    if begin is not None:
        llama_folder.save_tokenizer(source, begin=begin, eos_token=llama_folder.END)
    assert main(["import", str(source), "--out", str(checkpoint)]) == 0
    mine = trained_model(checkpoint, 3, None, "cpu").lm
    other = HFLM(str(source), device="cpu", batch_size=3)
    assert (mine.max_length, mine.prefix_token_id) == (other.max_length, other.prefix_token_id)
    assert (mine.tok_encode("a")[0] == mine.prefix_token_id) == (begin is not None)
    pairs = asked("loglikelihood", (words(5, 1), " hill"), ("", words(3, 2)), (words(200, 3), " of a norm"))
    assert [p for p, _ in mine.loglikelihood(pairs)] == pytest.approx(
        [p for p, _ in other.loglikelihood(pairs)], abs=2e-4
    )
    texts = asked("loglikelihood_rolling", (words(5, 1),), (words(200, 3),))
    assert mine.loglikelihood_rolling(texts) == pytest.approx(other.loglikelihood_rolling(texts), rel=1e-5)
    settings = {"until": [], "max_gen_toks": 10, "do_sample": False}
    prompts = asked("generate_until", (words(5, 1), settings), (words(200, 3), settings))
    assert mine.generate_until(prompts) == other.generate_until(prompts)


# Several processes


def shared_out(rank_that_fails: int) -> tuple[list[int], str]:
    """Which batches this process computed, and what it raised."""
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo")
    model = DecoderLM(decoder(DENSE), saved_model.tokenizer(), CONTEXT, 2)
    mine: list[int] = []

    def compute(batch: list[int]) -> dict[int, int]:
        if rank == rank_that_fails:
            raise ValueError("no memory")
        mine.extend(batch)
        return {number: 10 * number for number in batch}

    try:
        answers = model._shared_out([[0, 1], [2, 3], [4]], compute)
    except RuntimeError as error:
        return mine, str(error)
    finally:
        torch.distributed.destroy_process_group()
    assert answers == {number: 10 * number for number in range(5)}
    return mine, ""


def test_processes_share_the_batches_and_all_get_all_answers() -> None:
    assert on_ranks(2, shared_out, -1) == [([0, 1, 4], ""), ([2, 3], "")]


def test_a_process_that_fails_alone_fails_for_all() -> None:
    (_, first), (_, second) = on_ranks(2, shared_out, 1)
    assert first == second == "rank 1: ValueError: no memory"
