"""A decoder as a model of lm-eval."""

from collections import ChainMap
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tokenizers import Tokenizer
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from lrtrain.data.encoder import Encoder
from lrtrain.nn import Decoder
from lrtrain.nn.generation import Sampling, TextStream, generate
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.lost_processes import is_lost
from lrtrain.runtime.ranks import gathered
from lrtrain.studies.evaluation.continuation_scores import Score, arranged, score

Pair = tuple[Any, list[int], list[int]]
"""What lm-eval asks for: (the texts or None, tokens of the context, tokens of the continuation)."""

NEW_TOKENS = 256  # as lm-eval's `hf`, where a task does not say how many
IGNORED = ("do_sample", "until", "max_gen_toks")
DRAWS = ("temperature", "top_k", "top_p", "min_p")


class LoneFailureError(Exception):
    """One process failed where the others wait for its part of the weights: they cannot go on together."""


class DecoderLM(TemplateLM):
    """Answers as lm-eval's `hf` model answers for the exported folder, without the export.

    An empty context is the end-of-text token, which in training came before every document, or what an imported model
    has for it. What is longer than the context is cut at its beginning. A context that several continuations follow is
    computed once.

    Args:
        decoder: In evaluation. Of several processes all make the same requests at the same time; each computes a part
            of the batches, and all get all answers.
        tokenizer: That of its data.
        length: Tokens of the context: as many go through the decoder at once.
        batch_size: Sequences in a batch.
        before_batch: Called before each batch; what it raises ends the evaluation.
        prefix: Token of an empty context; the end-of-text token when None.
        before: What the tokenizer of an imported model puts before every text.
        ends: Tokens that end a generated text, beside the end-of-text token.
        bar: Show on stderr how many batches are done.

    Attributes:
        cut: Requests that were longer than the context, and `asked` how many there were.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        length: int,
        batch_size: int,
        before_batch: Callable[[], None] = lambda: None,
        prefix: int | None = None,
        before: Sequence[int] = (),
        ends: Collection[int] = (),
        bar: bool = False,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.length = length
        self.batch_size = batch_size
        self.before_batch = before_batch
        self.cut = self.asked = 0
        self._tokenizer = tokenizer
        self._bar = bar
        self._prefix, self._before = prefix, list(before)
        self._encoder = Encoder(tokenizer, np.dtype(np.int64))
        self._ends = {self._encoder.separator, *ends}
        self._processes = 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self._processes = torch.distributed.get_world_size()
        self._sharded = self._processes > 1 and any(isinstance(one, DTensor) for one in decoder.parameters())

    @property
    def max_length(self) -> int:
        return self.length

    @property
    def eot_token_id(self) -> int:
        return self._encoder.separator

    @property
    def prefix_token_id(self) -> int:
        return self._encoder.separator if self._prefix is None else self._prefix

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The tokens of a text as in training: nothing around it, and no control token that it only spells.

        What an imported model knows before a text is there unless `add_special_tokens` is false.
        """
        before = self._before if add_special_tokens is not False else []
        tokens: list[int] = self._encoder.documents([string])[0][:-1].tolist()
        return [*before, *tokens]

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[Score]:
        """(log p, in nats, whether each token is the likeliest) of every request's continuation after its context."""
        found: list[Score] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """log p of every text, in windows of the context's length that predict each token once."""
        windows: list[Pair] = []
        ends = []
        for (text,) in (request.args for request in requests):
            rolling = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.length, 1)
            windows += [(None, *make_disjoint_window(window)) for window in rolling]
            ends.append(len(windows))
        parts = [log_p for log_p, _ in self._loglikelihood_tokens(windows)]
        return [sum(parts[start:end]) for start, end in zip([0, *ends], ends, strict=False)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """The text that follows every request's context, before the first of its stop strings."""
        asked = [(number, *request.args) for number, request in enumerate(requests)]
        groups: dict[str, list[tuple[int, str, dict[str, Any]]]] = {}
        for one in asked:
            groups.setdefault(repr(sorted(one[2].items())), []).append(one)
        batches = []
        for group in groups.values():
            prompts = [(number, self.tok_encode(text), settings) for number, text, settings in group]
            prompts.sort(key=lambda prompt: -len(prompt[1]))
            batches += [prompts[i : i + self.batch_size] for i in range(0, len(prompts), self.batch_size)]
        self.asked += len(requests)
        answers = self._shared_out(batches, self._generated)
        return [answers[number] for number in range(len(requests))]

    def _loglikelihood_tokens(self, requests: Sequence[Pair], **kwargs: Any) -> list[Score]:
        fitting = [self._fitting(*request) for request in requests]
        batches = arranged(fitting, self.batch_size, sharing=not self._sharded)
        self.asked += len(requests)
        answers = self._shared_out(batches, lambda batch: score(self.decoder, batch))
        return [answers[number] for number in range(len(requests))]

    def _fitting(self, texts: Any, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """The tokens, the context without what is too long at its beginning; the last token is not given to the
        decoder.
        """
        if not 0 < len(continuation) <= self.length:
            which = "" if texts is None else f" {texts[1][:40]!r}"
            raise UserError(
                f"the continuation{which} has {len(continuation)} tokens, and the context {self.length}: it must have "
                "at least one, and fit"
            )
        excess = max(0, len(context) + len(continuation) - (self.length + 1))
        self.cut += excess > 0
        return context[excess:], continuation

    def _generated(self, batch: Sequence[tuple[int, list[int], dict[str, Any]]]) -> dict[int, str]:
        settings = dict(normalize_gen_kwargs(batch[0][2], NEW_TOKENS))
        stops = [stop for stop in handle_stop_sequences(settings["until"], None) if stop]
        new = settings["max_gen_toks"]
        if new >= self.length:
            raise UserError(f"a task asks for {new} new tokens, and the context has {self.length}: give a longer one")
        prompts = [tokens[-(self.length - new) :] or [self.prefix_token_id] for _, tokens, _ in batch]
        self.cut += sum(len(tokens) > self.length - new for _, tokens, _ in batch)
        streams = [TextStream(self._tokenizer.decode, prompt, stops) for prompt in prompts]

        def watch(row: int, token: int) -> bool:
            streams[row].add(token)
            return streams[row].stopped

        seeds = [number for number, _, _ in batch]
        generate(self.decoder, prompts, new, _sampling(settings), seeds=seeds, stop_tokens=self._ends, watch=watch)
        for stream in streams:
            stream.end()
        return {number: stream.text for (number, _, _), stream in zip(batch, streams, strict=True)}

    def _shared_out(self, batches: Sequence[Sequence[Any]], compute: Callable[[Any], dict[int, Any]]) -> dict[int, Any]:
        """What `compute` makes of all batches; among several processes each takes every so manieth."""
        world = self._processes
        rank = torch.distributed.get_rank() if world > 1 else 0
        mine: dict[int, Any] = {}
        failed: Exception | None = None
        for start in tqdm(range(0, len(batches), world), "batches", disable=not self._bar):
            self.before_batch()
            batch = batches[start + rank] if start + rank < len(batches) else []
            if failed is None and (batch or self._sharded):
                try:
                    with torch.no_grad():
                        mine |= compute(batch)
                except Exception as error:
                    if world == 1 or is_lost(error):
                        raise
                    if self._sharded:
                        raise LoneFailureError(f"rank {rank}: {type(error).__name__}: {error}") from error
                    failed = error
        everyone = gathered((mine, failed and f"rank {rank}: {type(failed).__name__}: {failed}"))
        if told := next((told for _, told in everyone if told), None):
            raise RuntimeError(told) from failed
        return dict(ChainMap(*(answers for answers, _ in everyone)))


def _sampling(settings: dict[str, Any]) -> Sampling:
    """How a task wants tokens drawn. Raises UserError for a rule that the engine does not have."""
    rules = {name: value for name, value in settings.items() if name not in IGNORED and value is not None}
    if not settings["do_sample"]:  # the likeliest token, whatever else would narrow the draw
        rules = {name: value for name, value in rules.items() if name not in DRAWS} | {"temperature": 0}
    elif rules.get("top_k") == 0:
        del rules["top_k"]
    if rules.get("num_beams") == 1:
        del rules["num_beams"]
    try:
        return Sampling(**rules)
    except (TypeError, ValueError) as error:
        raise UserError(f"a task's generation_kwargs: {error}; evaluate an export of it") from error
