"""The telemetry on plain models, against figures computed from whole weights in float64."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import reference
from lrtrain.constraints import StiefelRetraction, find_factors
from lrtrain.linalg import diagnostics
from lrtrain.nn import Decoder, DenseLinear, LowRankLinear, Projection, SpectralLinear
from lrtrain.training.telemetry import Telemetry, default_layers

KINDS = {
    "low-rank": partial(LowRankLinear, rank_ratio=0.25),
    "spectral": partial(SpectralLinear, rank_ratio=0.25),
    "dense": DenseLinear,
}
LR = 0.03


def decoder(attention: Any, mlp: Any, depth: int = 2) -> Decoder:
    return Decoder(50, 32, depth, 2, 48, attention, mlp)


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_is_that_of_the_whole_weights(kind: str) -> None:
    model = decoder(KINDS[kind], KINDS[kind])
    optimizer = SGD(model.parameters(), lr=LR)
    tokens = torch.randint(0, 50, (2, 9))
    name = "blocks.1.mlp.down"
    layer = model.get_submodule(name)
    assert isinstance(layer, Projection)
    seen: list[Tensor] = []
    telemetry = Telemetry(model, ["*.down", "*.query"])
    assert telemetry.layers == [f"blocks.{i}.{part}" for i in (0, 1) for part in ("attention.query", "mlp.down")]
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    telemetry.probe(lambda: model(tokens[:, :-1]))
    hook.remove()
    telemetry.before_step(optimizer)
    old = layer.materialize().detach().clone()
    optimizer.step()
    StiefelRetraction().hold(find_factors(model)[1]).after_step()  # a constraint is part of the step
    figures = telemetry.after_step()[name]

    new = layer.materialize()
    expected = reference.weight_figures(old, new, min(new.shape) if kind == "dense" else 12)  # a quarter of 48
    expected["update_over_lr"] = expected["update_norm"] / LR
    y = seen[0].flatten(0, 1).double() @ (new - old).detach().double().mT
    expected["output_change_rms"] = float(y.square().mean().sqrt())
    if isinstance(layer, LowRankLinear):
        expected |= {"sigma_A": reference.norm(layer.A), "sigma_B": reference.norm(layer.B)}
    if isinstance(layer, SpectralLinear):
        deviations = [float((x.mT @ x - torch.eye(12)).abs().max()) for x in (layer.U.detach(), layer.V.detach())]
        assert figures.pop("orthonormality_error") == pytest.approx(max(deviations), abs=1e-6)
    assert figures == pytest.approx(expected, rel=1e-3)
    assert expected["update_norm"] > 0


def test_dead_directions_are_those_that_the_factors_lost() -> None:
    model = nn.Sequential(LowRankLinear(16, 24, rank=8))
    layer = model[0]
    assert isinstance(layer, LowRankLinear)
    with torch.no_grad():
        layer.A[:, :2] = 0
        layer.B[:, 5] *= 1e-5
    telemetry = Telemetry(model, ["*"])
    telemetry.before_step(SGD(model.parameters(), lr=LR))
    figures = telemetry.after_step()["0"]
    assert figures["dead_directions"] == 3 / 8
    assert figures["update_norm"] == figures["update_over_weight"] == 0
    assert figures["effective_rank"] < 5


class TwoPairs(LowRankLinear):
    """Two weights in one projection."""

    def __init__(self) -> None:
        super().__init__(4, 4, rank=2)
        self.C, self.D = nn.Parameter(torch.ones(4, 1)), nn.Parameter(torch.ones(4, 1))

    def factor_pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return [(self.A, self.B), (self.C, self.D)]


def test_each_weight_of_a_projection_is_measured() -> None:
    model = nn.Sequential(TwoPairs())
    telemetry = Telemetry(model, ["*"])
    telemetry.before_step(SGD(model.parameters(), lr=LR))
    figures = telemetry.after_step()
    assert list(figures) == ["0", "0.1"]
    assert figures["0.1"]["weight_norm"] == pytest.approx(4)


def test_a_large_dense_weight_goes_without_its_singular_values(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(DenseLinear(20, 30))
    telemetry, optimizer = Telemetry(model, ["*"]), SGD(model.parameters(), lr=LR)
    found = []
    for exact in (20, 19):
        monkeypatch.setattr(diagnostics, "EXACT", exact)
        telemetry.before_step(optimizer)
        found.append(telemetry.after_step()["0"])
    assert found[0].keys() - found[1].keys() == {"effective_rank", "dead_directions"}
    assert found[1] == pytest.approx({key: found[0][key] for key in found[1]}, rel=0.02)


def test_without_a_learning_rate_there_is_no_ratio_to_it() -> None:
    model = nn.Sequential(LowRankLinear(6, 5, rank=2), LowRankLinear(5, 6, rank=2))
    telemetry = Telemetry(model, ["*"])
    first, second = (list(layer.parameters()) for layer in model)
    telemetry.before_step(SGD([{"params": first, "lr": 0.0}, {"params": second[1:], "lr": 0.1}]))
    assert all("update_over_lr" not in found for found in telemetry.after_step().values())


def test_a_probe_draws_nothing_and_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Dropout(0.5), LowRankLinear(6, 6, rank=2), nn.Dropout(0.5).eval())
    telemetry = Telemetry(model, ["1"])
    x = torch.randn(3, 4, 6, requires_grad=True)
    state = torch.get_rng_state()
    outputs: list[Tensor] = []
    telemetry.probe(lambda: outputs.append(model(x)))
    assert torch.equal(torch.get_rng_state(), state)
    assert not outputs[0].requires_grad
    assert [child.training for child in model] == [True, True, False]
    assert not model[1]._forward_pre_hooks
    assert torch.equal(telemetry._inputs["1"], x.detach().flatten(0, 1))  # dropout was off


def test_the_layers_by_default_are_spread_over_the_depth_and_have_every_class() -> None:
    def chosen(attention: Any, mlp: Any, depth: int) -> list[str]:
        with torch.device("meta"):
            model = decoder(attention, mlp, depth)
        return default_layers({name: m for name, m in model.named_modules() if isinstance(m, Projection)})

    low_rank, spectral, dense = KINDS["low-rank"], KINDS["spectral"], KINDS["dense"]
    assert chosen(low_rank, low_rank, 12) == [f"blocks.{i}.attention.output" for i in (0, 4, 6, 11)]
    assert chosen(dense, dense, 1) == ["blocks.0.attention.output"]
    both = [f"blocks.{i}.{part}" for part in ("attention.output", "mlp.down") for i in (0, 1)]
    assert chosen(dense, spectral, 2) == both
    assert default_layers({f"layer{i}": DenseLinear(2, 2) for i in range(9)}) == [f"layer{i}" for i in (0, 4, 8)]
    assert default_layers({}) == []
