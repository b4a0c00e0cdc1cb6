"""Continuing a sequence token by token."""

from collections.abc import Callable

import torch
from torch import Tensor

from lrtrain.nn.decoder import Decoder, KVCache


@torch.no_grad()
def sample(
    decoder: Decoder,
    prompt: list[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    stop: int | None = None,
) -> list[int]:
    """Tokens that follow a prompt, drawn from softmax(logits / temperature) over the nucleus of probability top_p.

    The nucleus is the smallest set of most likely tokens whose probabilities sum to at least top_p (arXiv 1904.09751).

    Args:
        decoder: In evaluation; keys and values are cached, so every token is computed once.
        prompt: At least one token id.
        max_new_tokens: Upper bound of the returned length.
        temperature: > 0; 0 takes the most likely token.
        top_p: In (0, 1].
        generator: Source of randomness on the CPU, for repeatable text.
        stop: A token that ends the text and is not returned.

    Raises:
        ValueError: an empty prompt, or a value out of range.
        FloatingPointError: the model's logits are no finite numbers.
    """
    if not prompt:
        raise ValueError("the prompt has no token")
    if temperature < 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    device = decoder.head_VD.device
    cache: KVCache = [None] * len(decoder.blocks)
    step = torch.tensor([prompt], device=device)
    continuation: list[int] = []
    while len(continuation) < max_new_tokens:
        logits_V = decoder.logits(decoder(step, cache)[:, -1])[0].float().cpu()
        token = _choose(logits_V, temperature, top_p, generator)
        if token == stop:
            break
        continuation.append(token)
        step = torch.tensor([[token]], device=device)
    return continuation


def text_after(prompt: list[int], continuation: list[int], decode: Callable[[list[int]], str]) -> str:
    """The text that a continuation adds to its prompt's.

    Both are decoded together: by itself a first token loses the space that marks it as the beginning of a word.
    """
    before, whole = decode(prompt), decode(prompt + continuation)
    pairs = zip(before, whole, strict=False)
    return whole[next((i for i, (one, other) in enumerate(pairs) if one != other), len(before)) :]


def _choose(logits_V: Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> int:
    largest = logits_V.max()
    if not largest.isfinite():  # NaN is the largest of all
        raise FloatingPointError("the model's logits are no finite numbers: its weights hold NaN or infinities")
    if temperature == 0:
        return int(logits_V.argmax())
    scaled_V = (logits_V - largest).double() / temperature  # the largest stays 0 at whatever temperature
    probabilities, tokens = torch.softmax(scaled_V, dim=-1).sort(descending=True)
    # A token stays while the ones before it do not reach top_p; the first always stays.
    probabilities[probabilities.cumsum(0) - probabilities >= top_p] = 0
    return int(tokens[torch.multinomial(probabilities, 1, generator=generator)])
