"""Continuing sequences token by token, many at once.

Shape suffixes as in `nn/decoder.py`: B rows, T tokens, D model width, V vocabulary.
"""

import inspect
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lrtrain.nn.decoder import Decoder
from lrtrain.nn.generation.on_cpu import multiplies_rows_itself, without_onednn
from lrtrain.nn.generation.sampling import Sampling
from lrtrain.nn.kv_cache import KVCache

Ending = Literal["stop token", "stopped", "length", "context"]
Watch = Callable[[int, int], bool]
"""(row, token) -> whether the row ends with it; called for every token as it is drawn."""


@dataclass
class Continuation:
    """What follows a prompt.

    Attributes:
        tokens: Without the stop token.
        log_probabilities: Of each, in nats, by the model itself: before temperature and all other rules.
        ending: A stop token came, `watch` stopped it, max_new_tokens are there, or the context is full.
    """

    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    ending: Ending = "length"


@torch.no_grad()
def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    *,
    samples: int = 1,
    seeds: Sequence[object] | None = None,
    stop_tokens: Collection[int] = (),
    context: int | None = None,
    watch: Watch | None = None,
    on_end: Callable[[int, Continuation], None] | None = None,
) -> list[Continuation]:
    """Continues all prompts at once; row p · samples + s is the sample s of prompt p.

    Each prompt is computed once, whatever the number of its samples, and each drawn token once. A row's draws depend on
    its prompt's seed and on its sample alone; in what company it is computed moves its logits by rounding.

    Args:
        decoder: In evaluation.
        prompts: Token ids of any lengths; none is empty.
        max_new_tokens: Upper bound of the tokens that follow, at least 1.
        sampling: How they are drawn; softmax(logits) when None.
        samples: Of each prompt.
        seeds: One of each prompt, whatever has a text; its place in the list when None.
        stop_tokens: Tokens that end a row.
        context: Tokens that the decoder is given at most, a prompt's among them; any number when None.
        watch: Sees each token, and may end its row.
        on_end: Takes each row and what was found of it as soon as it has ended.

    Raises:
        ValueError: an empty prompt, one longer than the context, a value out of range, or a decoder of one's own that
            does not keep its keys and values.
        FloatingPointError: the model's logits are no finite numbers.
    """
    sampling = sampling or Sampling()
    seeds = range(len(prompts)) if seeds is None else seeds
    if len(seeds) != len(prompts):
        raise ValueError(f"there are {len(seeds)} seeds for {len(prompts)} prompts")
    limits = _limits(prompts, max_new_tokens, samples, context)
    cache = KVCache(len(prompts), max(map(len, prompts)) + (max(limits) if samples == 1 else 0))
    hidden_BTD = feed(decoder, cache, prompts)
    ends = torch.tensor([len(prompt) - 1 for prompt in prompts], device=hidden_BTD.device)
    logits_BV = _logits(decoder, hidden_BTD[torch.arange(len(prompts), device=ends.device), ends])
    seen_BV = None if sampling.repetition_penalty == 1 else _seen(prompts, logits_BV)
    if samples > 1:
        each = [number for number in range(len(prompts)) for _ in range(samples)]
        cache, logits_BV = cache.select(each, cache.room + max(limits)), logits_BV[each]
        seen_BV = None if seen_BV is None else seen_BV[each]

    rows = [
        _Row(number * samples + sample, limit, random.Random(f"{seed} {sample}"), max_new_tokens)
        for number, (limit, seed) in enumerate(zip(limits, seeds, strict=True))
        for sample in range(samples)
    ]
    places = rows  # the row at each place of the cache
    own_rows = multiplies_rows_itself(decoder)
    while True:
        tokens_B = sampling.draw(logits_BV, [row.chance.random() for row in places], seen_BV)
        log_probabilities = logits_BV.gather(-1, tokens_B[:, None])[:, 0] - logits_BV.logsumexp(-1)
        for row, token, log_probability in zip(places, tokens_B.tolist(), log_probabilities.tolist(), strict=True):
            if not row.ended and row.ends_with(token, log_probability, stop_tokens, watch) and on_end is not None:
                on_end(row.number, row.found)
        going = [place for place, row in enumerate(places) if not row.ended]
        if not going:
            return [row.found for row in rows]
        if seen_BV is not None:
            seen_BV.scatter_(1, tokens_B[:, None], True)
        if 2 * len(going) <= len(places):  # rows that have ended are computed along until they are half of all
            places, cache, tokens_B = (
                [places[place] for place in going],
                cache.select(going, cache.room),
                tokens_B[going],
            )
            seen_BV = None if seen_BV is None else seen_BV[going]
        with without_onednn(own_rows and len(places) == 1):
            logits_BV = _logits(decoder, decoder(tokens_B[:, None], cache)[:, 0])


def feed(decoder: Decoder, cache: KVCache, tokens: Sequence[Sequence[int]]) -> Tensor:
    """Hidden states (B, T, D) of the tokens that follow the cached ones, in rows of any lengths; the cache is extended.

    T is the longest row's; behind a shorter row's end the states mean nothing.

    Raises:
        ValueError: the cache has no room, or the decoder does not extend it.
    """
    device, before = decoder.head_VD.device, cache.lengths
    longest = max(map(len, tokens))
    padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in tokens], device=device)
    name = f"{type(decoder).__module__}.{type(decoder).__qualname__}"
    if not _takes_cache(decoder):
        raise ValueError(f"{name}.forward takes no cache: give it cache=None, and pass it on to Decoder.forward")
    hidden_BTD: Tensor = decoder(padded, cache)
    if cache.lengths == before:
        raise ValueError(f"{name}.forward does not extend its cache: pass it on to Decoder.forward, or to the blocks")
    cache.lengths = [length + len(row) for length, row in zip(before, tokens, strict=True)]
    return hidden_BTD


def _takes_cache(decoder: Decoder) -> bool:
    parameters = inspect.signature(decoder.forward).parameters.values()
    return len(parameters) > 1 or any(one.kind is one.VAR_POSITIONAL for one in parameters)


class _Row:
    """A text that is being written: its tokens so far, how many may come, and whether it has ended."""

    def __init__(self, number: int, limit: int, chance: random.Random, max_new_tokens: int) -> None:
        self.number = number
        self.chance = chance
        self.found = Continuation(ending="length" if limit == max_new_tokens else "context")
        self.ended = False
        self._limit = limit

    def ends_with(self, token: int, log_probability: float, stop_tokens: Collection[int], watch: Watch | None) -> bool:
        """Takes the token that was drawn, and says whether it is the last one."""
        if token in stop_tokens:
            self.found.ending, self.ended = "stop token", True
            return True
        self.found.tokens.append(token)
        self.found.log_probabilities.append(log_probability)
        if watch is not None and watch(self.number, token):
            self.found.ending, self.ended = "stopped", True
        elif len(self.found.tokens) == self._limit:
            self.ended = True
        return self.ended


def _limits(prompts: Sequence[Sequence[int]], max_new_tokens: int, samples: int, context: int | None) -> list[int]:
    """Tokens that may follow each prompt. The last one that is drawn is not given to the decoder."""
    for name, value in {"prompts": len(prompts), "max_new_tokens": max_new_tokens, "samples": samples}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {number} has no token")
        if context is not None and len(prompt) > context:
            raise ValueError(f"prompt {number} has {len(prompt)} tokens, and the context {context}")
    return [max_new_tokens if context is None else min(max_new_tokens, context - len(p) + 1) for p in prompts]


def _logits(decoder: Decoder, hidden_BD: Tensor) -> Tensor:
    logits_BV = decoder.logits(hidden_BD[:, None])[:, 0].float()
    if not logits_BV.amax().isfinite():  # NaN is the largest of all
        raise FloatingPointError("the model's logits are no finite numbers: its weights hold NaN or infinities")
    return logits_BV


def _seen(prompts: Sequence[Sequence[int]], logits_BV: Tensor) -> Tensor:
    seen_BV = torch.zeros_like(logits_BV, dtype=torch.bool)
    for row, prompt in zip(seen_BV, prompts, strict=True):
        row[list(prompt)] = True
    return seen_BV
