import pytest
import torch
from my_constraint import MyConstraint

from lrtrain.constraints import NothingToHoldError
from lrtrain.nn import DenseLinear, LowRankLinear


def test_no_column_is_longer_and_short_ones_stay() -> None:
    model = torch.nn.Sequential(LowRankLinear(32, 16, rank_ratio=0.25))
    constraint = MyConstraint(length=0.5)
    constraint.attach(model, torch.optim.SGD(model.parameters(), 0.1))
    with torch.no_grad():
        constraint.factors[0][:, 0] = 100.0
        constraint.factors[0][:, 1] = 1e-3
    short = constraint.factors[0][:, 1].clone()
    constraint.after_step()
    assert all(factor.norm(dim=0).max().item() <= 0.5 + 1e-6 for factor in constraint.factors)
    assert torch.equal(constraint.factors[0][:, 1], short)


def test_a_model_without_factors_is_refused() -> None:
    model = torch.nn.Sequential(DenseLinear(32, 16))
    with pytest.raises(NothingToHoldError):
        MyConstraint().attach(model, torch.optim.SGD(model.parameters(), 0.1))
