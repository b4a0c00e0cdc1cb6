"""Validation loss, perplexity and bits per byte."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

PER_OCTAVE = 4
BINS = 100
"""Intervals of positions, four to each doubling: 1, 2, 3, 4, 5, …, 9–10, … up to 2²⁵ tokens."""


class TokenLoss(Metric):
    """The mean loss per token over everything seen of each of several sources, on all processes.

    loss = Σ nll / tokens (nats per token), perplexity = exp(loss), bits_per_byte = loss / ln 2 · tokens/bytes. The last
    is comparable between tokenizers; it needs the data's ratio of bytes to tokens.

    Sums are kept by the position in the context as well, in intervals (`bin_of`), and apart for what came without one.
    """

    full_state_update = False
    nll: Tensor
    tokens: Tensor

    def __init__(self, sources: int = 1) -> None:
        super().__init__()
        self.longest = 0  # tokens of the longest sequence that was seen
        self.add_state("nll", torch.zeros(sources, BINS + 1, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros(sources, BINS + 1, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, mean_loss: Tensor, tokens: int, source: int = 0) -> None:
        """Adds a batch of `tokens` tokens, which may be none, with its mean loss (nats): at each position, or one."""
        if not tokens:
            return
        bins = bin_of(torch.arange(len(mean_loss))) if mean_loss.ndim else torch.tensor([BINS])
        self.longest = max(self.longest, mean_loss.numel())
        bins = bins.to(mean_loss.device)
        each = tokens / len(bins)
        self.nll[source].index_add_(0, bins, mean_loss.double().reshape(-1) * each)
        self.tokens[source].index_add_(0, bins, torch.full_like(bins, 1, dtype=torch.float64) * each)

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss of each source (nats per token), and its loss and tokens by interval (sources, intervals); float64.

        An interval without tokens has the loss NaN; the last one holds what came without a position.
        """
        return self.nll.sum(dim=1) / self.tokens.sum(dim=1), self.nll / self.tokens, self.tokens.clone()


def bin_of(positions: Tensor) -> Tensor:
    """The interval of each position in the context, from 0: ⌊4 · log₂(1 + position)⌋, at most `BINS` − 1."""
    return (PER_OCTAVE * torch.log2(positions.double() + 1) + 1e-9).floor().long().clamp_(max=BINS - 1)


def by_position(losses: Sequence[float], tokens: Sequence[float], longest: int) -> list[dict[str, float]]:
    """The intervals of one source that have tokens: the first and the last position, loss and tokens."""
    found = []
    for index, (loss, count) in enumerate(zip(losses[:BINS], tokens[:BINS], strict=True)):
        if count:
            first = math.ceil(2 ** (index / PER_OCTAVE) - 1e-9) - 1
            last = math.ceil(2 ** ((index + 1) / PER_OCTAVE) - 1e-9) - 2
            found.append({"first": first, "last": min(last, longest - 1), "loss": loss, "tokens": count})
    return found


def summaries(
    losses: Sequence[float], shares: Mapping[str, float], bytes_per_token: Callable[..., float | None]
) -> dict[str, float]:
    """The summary of the mean of the sources' losses by their shares and, under `<source>/`, that of each.

    Where there are no shares, there is one source. `bytes_per_token` is called without argument, and for each source.
    """
    mean = sum(share * loss for share, loss in zip(shares.values() or (1.0,), losses, strict=True))
    found = summary(mean, bytes_per_token())
    for source, loss in zip(shares, losses, strict=False):
        found |= {f"{source}/{name}": value for name, value in summary(loss, bytes_per_token(source=source)).items()}
    return found


def summary(loss: float, bytes_per_token: float | None) -> dict[str, float]:
    """loss, perplexity and, where bytes_per_token is known, bits_per_byte."""
    result = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
    if bytes_per_token:
        result["bits_per_byte"] = loss / math.log(2) / bytes_per_token
    return result
