import torch
from my_projection import MyProjection


def test_shape_and_number_of_parameters() -> None:
    projection = MyProjection(64, 96, rank_ratio=0.25)
    assert projection(torch.randn(2, 5, 64)).shape == (2, 5, 96)
    assert sum(p.numel() for p in projection.parameters()) == 16 * (64 + 96)


def test_every_parameter_gets_a_gradient() -> None:
    projection = MyProjection(64, 96)
    projection(torch.randn(3, 64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in projection.parameters())
