"""Validation loss, perplexity and bits per byte."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric


class TokenLoss(Metric):
    """The mean loss per token over everything seen, on all processes.

    loss = Σ nll / tokens (nats per token), perplexity = exp(loss), bits_per_byte = loss / ln 2 · tokens/bytes. The last
    is comparable between tokenizers; it needs the data's ratio of bytes to tokens.
    """

    full_state_update = False
    nll: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nll", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, mean_loss: Tensor, tokens: int) -> None:
        """Adds a batch of `tokens` tokens, which may be none, with the mean loss `mean_loss` (nats)."""
        if tokens:
            self.nll += mean_loss.double() * tokens
            self.tokens += tokens

    def compute(self) -> Tensor:
        """Mean loss in nats per token, 0-d float64."""
        return self.nll / self.tokens

    def summary(self, bytes_per_token: float | None) -> dict[str, float]:
        """loss, perplexity and, where bytes_per_token is known, bits_per_byte."""
        loss = float(self.compute())
        result = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if bytes_per_token:
            result["bits_per_byte"] = loss / math.log(2) / bytes_per_token
        return result
