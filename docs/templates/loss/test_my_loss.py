import pytest
import torch
from my_loss import MyLoss

from lrtrain.nn import next_token_loss


def test_it_is_the_cross_entropy_and_the_weighted_square_of_log_z() -> None:
    hidden, head, targets = torch.randn(2, 3, 8), torch.randn(11, 8), torch.randint(11, (2, 3))
    log_z = (hidden @ head.mT).logsumexp(-1)
    expected = next_token_loss(hidden, head, targets) + 0.5 * log_z.square().mean()
    assert MyLoss(0.5)(hidden, head, targets, targets).item() == pytest.approx(expected.item(), rel=1e-5)
