"""The sample at the end of a run: tokenized as the training text was, and with every space."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from lrtrain.nn import Continuation
from lrtrain.training import summary
from lrtrain.training.callbacks.closing_validation import ClosingValidation


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The sample of a run whose tokenizer knows these words, and the prompts that the model was given."""
    prompts: list[list[int]] = []

    def generate(decoder: object, given: list[list[int]], *rest: object) -> list[Continuation]:
        prompts.extend(given)
        return [Continuation([2, 3])]

    monkeypatch.setattr(summary, "generate", generate)

    def draw(words: list[str], callbacks: Any = (), data: Any = None) -> tuple[str | None, list[list[int]]]:
        tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        tokenizer.add_special_tokens(["<s>"])
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A <s>", special_tokens=[("<s>", 0)])
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        trainer: Any = SimpleNamespace(
            default_root_dir=tmp_path, is_global_zero=True, strategy=None, callbacks=callbacks, datamodule=data
        )
        return summary._sample(trainer, torch.nn.Module()), prompts  # type: ignore[arg-type]

    return draw


def test_a_word_after_the_prompt_keeps_its_space_and_no_special_token_is_added(drawn: Any) -> None:
    text, prompts = drawn(["<s>", "▁", "▁one", "two", "d", "e", "f"])
    assert text == "\n    def ▸ onetwo"
    assert prompts == [[1, 4, 5, 6, 1]]


def test_a_prompt_without_a_token_draws_nothing(drawn: Any) -> None:
    assert drawn(["<s>", "x", "y", "z"]) == (None, [])


def test_what_is_continued_is_the_beginning_of_a_held_out_text(drawn: Any) -> None:
    closing = ClosingValidation()
    words = ["<s>", "▁", "▁one", "two", *(f"▁w{number}" for number in range(60))]
    row = [9, 10, 0, *range(20, 60)]  # the end of a text, and the next one
    closing.first_batch = torch.tensor([row])
    text, prompts = drawn(words, [closing], SimpleNamespace(manifest=SimpleNamespace(eot_id=0)))
    assert prompts == [row[3 : 3 + summary.PROMPT_TOKENS]]
    assert text == f"held-out text ▸ its continuation\n    {' '.join(words[token][1:] for token in prompts[0])}▸ onetwo"
    _, prompts = drawn(words, [closing], None)
    assert prompts[1] == row[: summary.PROMPT_TOKENS]
