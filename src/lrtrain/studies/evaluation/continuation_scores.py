"""How likely continuations are, in batches of like length, each context computed once where several follow it.

Shape suffixes as in `nn/decoder.py`; N is the number of tokens that are asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lrtrain.nn import Decoder
from lrtrain.nn.generation import feed
from lrtrain.nn.kv_cache import KVCache
from lrtrain.nn.loss import CHUNK_LOGITS

Score = tuple[float, bool]
"""log p of a continuation, in nats, and whether each of its tokens is the likeliest."""

WORTH = 0.75
"""A context is shared where that leaves at most this part of the tokens to compute."""


@dataclass(frozen=True)
class Branch:
    """A context and what may follow it, by the numbers of the requests.

    Attributes:
        context: Tokens, at least one.
        continuations: Each with at least one token, and with the context no more than the decoder is given, and one.
    """

    context: tuple[int, ...]
    continuations: Mapping[int, Sequence[int]]

    @property
    def whole(self) -> int:
        """Tokens to compute where every continuation has the context before it."""
        return len(self.context) * len(self.continuations) + self._own

    @property
    def shared(self) -> int:
        """Tokens to compute where the context is computed once."""
        return len(self.context) + self._own

    @property
    def _own(self) -> int:
        return sum(len(one) - 1 for one in self.continuations.values())

    def length(self) -> int:
        return len(self.context) + max(map(len, self.continuations.values()))


def arranged(requests: Sequence[tuple[Sequence[int], Sequence[int]]], size: int, sharing: bool) -> list[list[Branch]]:
    """Batches of at most `size` continuations, the longest sequences first, so that what does not fit into memory shows
    at once.

    Args:
        requests: (context, continuation) of each, by its number.
        size: Of a batch.
        sharing: Whether contexts may be shared.
    """
    by_context: dict[tuple[int, ...], dict[int, Sequence[int]]] = {}
    for number, (context, continuation) in enumerate(requests):
        by_context.setdefault(tuple(context), {})[number] = continuation
    branches = []
    for context, continuations in by_context.items():
        numbers = sorted(continuations, key=lambda number: -len(continuations[number]))
        for start in range(0, len(numbers), size):
            branch = Branch(context, {number: continuations[number] for number in numbers[start : start + size]})
            if sharing and branch.shared <= WORTH * branch.whole:
                branches.append(branch)
            else:
                branches += [Branch(context, {number: one}) for number, one in branch.continuations.items()]
    return list(_batches(sorted(branches, key=lambda branch: (-branch.length(), branch.context)), size))


def _batches(branches: Sequence[Branch], size: int) -> Iterator[list[Branch]]:
    """In order; branches that share and those that do not stand in batches of their own."""
    for sharing in (True, False):
        batch: list[Branch] = []
        for branch in branches:
            if (len(branch.continuations) > 1) != sharing:
                continue
            if sum(len(one.continuations) for one in [*batch, branch]) > size:
                yield batch
                batch = []
            batch.append(branch)
        if batch:
            yield batch


def score(decoder: Decoder, batch: Sequence[Branch]) -> dict[int, Score]:
    """The scores of a batch's requests; an empty batch takes part in gathering sharded weights.

    Raises:
        FloatingPointError: the model's logits are no finite numbers.
    """
    if any(len(branch.continuations) > 1 for branch in batch):
        return _after_shared_contexts(decoder, batch)
    rows = [(branch.context, *one) for branch in batch for one in branch.continuations.items()]
    inputs = [[*context, *continuation[:-1]] for context, _, continuation in rows] or [[0]]
    width, device = max(map(len, inputs)), decoder.head_VD.device
    # What stands behind a sequence changes nothing before it.
    tokens_BT = torch.tensor([[*row, *[0] * (width - len(row))] for row in inputs], device=device)
    asked = [
        (row, len(context) - 1 + place, token)
        for row, (context, _, continuation) in enumerate(rows)
        for place, token in enumerate(continuation)
    ]
    row_N, place_N, target_N = torch.tensor(asked or [(0, 0, 0)], device=device).T

    def own(hidden_BTD: Tensor, head_VD: Tensor, targets_BT: Tensor, tokens_BT: Tensor) -> Tensor:
        return token_scores(hidden_BTD[row_N, place_N], head_VD, target_N)

    # As a loss: where weights are sharded, one call gathers them for the blocks and for the head.
    found = decoder.loss(tokens_BT, tokens_BT, own)
    return _summed({number: len(continuation) for _, number, continuation in rows}, found)


def _after_shared_contexts(decoder: Decoder, batch: Sequence[Branch]) -> dict[int, Score]:
    """Contexts once; then what follows their last token, each continuation from a copy of its context's cache."""
    device = decoder.head_VD.device
    contexts = [branch.context for branch in batch]
    cache = KVCache(len(batch), max(map(len, contexts)))
    hidden_BTD = feed(decoder, cache, contexts)
    last_BD = hidden_BTD[range(len(batch)), [len(context) - 1 for context in contexts]]
    rows = [(row, *one) for row, branch in enumerate(batch) for one in branch.continuations.items()]
    hidden_ND = [last_BD[[row for row, _, _ in rows]]]
    longer = [(row, number, continuation) for row, number, continuation in rows if len(continuation) > 1]
    if longer:
        room = cache.room + max(len(continuation) - 1 for _, _, continuation in longer)
        copies = cache.select([row for row, _, _ in longer], room)
        more_BTD = feed(decoder, copies, [continuation[:-1] for _, _, continuation in longer])
        hidden_ND += [more_BTD[at, : len(continuation) - 1] for at, (_, _, continuation) in enumerate(longer)]
    first = [continuation[0] for _, _, continuation in rows]
    others = [token for _, _, continuation in longer for token in continuation[1:]]
    found = token_scores(torch.cat(hidden_ND), decoder.head_VD, torch.tensor(first + others, device=device))
    scores = _summed({number: 1 for _, number, _ in rows}, found[:, : len(rows)])
    rest = _summed({number: len(continuation) - 1 for _, number, continuation in longer}, found[:, len(rows) :])
    return {
        number: (p + rest.get(number, (0.0, True))[0], greedy and rest.get(number, (0.0, True))[1])
        for number, (p, greedy) in scores.items()
    }


def token_scores(hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor) -> Tensor:
    """(2, N) in float64: log softmax(h Eᵀ)[target], and 1 where the target is the likeliest token, else 0."""
    chunk = max(1, CHUNK_LOGITS // len(head_VD))
    found = []
    for start in range(0, len(hidden_ND), chunk):
        logits = F.linear(hidden_ND[start : start + chunk], head_VD).float()
        targets = target_N[start : start + chunk]
        log_p = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0]
        found.append(torch.stack([log_p.double(), (logits.argmax(dim=-1) == targets).double()]))
    return torch.cat(found, dim=1)


def _summed(sizes: Mapping[int, int], found_2N: Tensor) -> dict[int, Score]:
    """The scores of continuations whose tokens stand one after the other."""
    log_p, likeliest = found_2N.cpu()
    if not log_p.isfinite().all():
        raise FloatingPointError("the model's logits are no finite numbers: its weights hold NaN or infinities")
    scores, start = {}, 0
    for number, size in sizes.items():
        part = slice(start, start + size)
        scores[number] = float(log_p[part].sum()), bool(likeliest[part].all())
        start += size
    return scores
