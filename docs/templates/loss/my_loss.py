"""A training loss. Validation stays the cross-entropy, so that runs can be compared."""

from torch import Tensor
from torch.nn import functional as F

from lrtrain.nn import next_token_loss


class MyLoss:
    """Cross-entropy and a z-loss: `weight` times the mean of (log Z)², Z being the softmax's denominator.

    Args:
        weight: Of the second term.
    """

    def __init__(self, weight: float = 1e-4) -> None:
        self.weight = weight

    def __call__(self, hidden_BTD: Tensor, head_VD: Tensor, targets_BT: Tensor, tokens_BT: Tensor) -> Tensor:
        log_z_BT = F.linear(hidden_BTD, head_VD).float().logsumexp(-1)
        return next_token_loss(hidden_BTD, head_VD, targets_BT) + self.weight * log_z_BT.square().mean()
