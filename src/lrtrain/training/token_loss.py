"""Validation loss, perplexity and bits per byte."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class TokenLoss(Metric):
    """The mean loss per token over everything seen of each of several sources, on all processes.

    loss = Σ nll / tokens (nats per token), perplexity = exp(loss), bits_per_byte = loss / ln 2 · tokens/bytes. The last
    is comparable between tokenizers; it needs the data's ratio of bytes to tokens.
    """

    full_state_update = False
    nll: Tensor
    tokens: Tensor

    def __init__(self, sources: int = 1) -> None:
        super().__init__()
        self.add_state("nll", torch.zeros(sources, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros(sources, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, mean_loss: Tensor, tokens: int, source: int = 0) -> None:
        """Adds a batch of `tokens` tokens, which may be none, with the mean loss `mean_loss` (nats)."""
        if tokens:
            self.nll[source] += mean_loss.double() * tokens
            self.tokens[source] += tokens

    def compute(self) -> Tensor:
        """Mean loss of each source in nats per token, float64."""
        return self.nll / self.tokens


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
