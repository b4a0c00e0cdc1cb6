"""The contract of every projection in `lrtrain.nn`, found by itself, and what is particular to each."""

import importlib
import inspect
import math
import pkgutil
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import lrtrain.nn
import reference
from lrtrain.linalg import orthonormality_error
from lrtrain.nn import DenseLinear, LowRankLinear, Projection, SpectralLinear
from lrtrain.nn.factorized import resolve_rank
from lrtrain.nn.rewriting import as_factors


def subclasses(cls: type) -> Iterator[type]:
    for child in cls.__subclasses__():
        yield child
        yield from subclasses(child)


for _module in pkgutil.walk_packages(lrtrain.nn.__path__, "lrtrain.nn."):
    importlib.import_module(_module.name)
PROJECTIONS = sorted(
    {cls for cls in subclasses(Projection) if cls.__module__.startswith("lrtrain.") and not inspect.isabstract(cls)},
    key=lambda cls: cls.__name__,
)
FACTORIZED = [cls for cls in PROJECTIONS if "rank" in inspect.signature(cls).parameters]

every = pytest.mark.parametrize("cls", PROJECTIONS)
every_factorized = pytest.mark.parametrize("cls", FACTORIZED)
shapes = pytest.mark.parametrize(("into", "out"), [(24, 40), (40, 24), (16, 16)])


def make(cls: type, into: int, out: int, rank: int | None = None) -> Projection:
    return cls(into, out, rank=rank or min(into, out) // 2) if cls in FACTORIZED else cls(into, out)


def test_the_projections_of_the_library_are_found() -> None:
    assert {DenseLinear, LowRankLinear, SpectralLinear} <= set(PROJECTIONS)
    assert {LowRankLinear, SpectralLinear} <= set(FACTORIZED)


# Every projection


@every
@shapes
def test_forward_is_the_product_with_the_materialized_weight(cls: type, into: int, out: int) -> None:
    layer = make(cls, into, out)
    assert layer.materialize().shape == (out, into)
    x = torch.randn(2, 5, into)
    torch.testing.assert_close(layer(x), x @ layer.materialize().mT, rtol=1e-4, atol=1e-5)


@every_factorized
@shapes
def test_a_dense_weight_is_reproduced_at_full_rank(cls: type, into: int, out: int) -> None:
    weight = torch.randn(out, into)
    layer = as_factors(weight, cls, rank=min(into, out))[0]
    assert (layer.in_features, layer.out_features) == (into, out)
    torch.testing.assert_close(layer.materialize(), weight, rtol=0, atol=2e-5)
    assert all(p.dtype == torch.float32 and p.is_leaf and p.requires_grad for p in layer.parameters())


@every_factorized
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_dense_weight_of_another_dtype_becomes_float32_triplets(cls: type, dtype: torch.dtype) -> None:
    weight = torch.randn(40, 24).to(dtype)
    layer = as_factors(weight, cls, rank=24)[0]
    torch.testing.assert_close(layer.materialize(), weight.float(), rtol=0, atol=2e-5)
    assert all(float(orthonormality_error(basis)) <= 1e-5 for basis in layer.orthonormal())
    assert as_factors(weight, cls, energy=0.9)[0].rank == as_factors(weight.float(), cls, energy=0.9)[0].rank


@every_factorized
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("size", [{"rank": 4}, {"energy": 0.5}])
def test_a_dense_weight_that_is_not_finite_is_refused(cls: type, wrong: float, size: dict[str, float]) -> None:
    weight = torch.randn(24, 16)
    weight[3, 5] = wrong
    with pytest.raises(ValueError, match="its weight holds NaN or infinite numbers"):
        as_factors(weight, cls, **size)


@every_factorized
def test_factors_of_a_weight_draw_no_random_numbers_and_are_a_copy(cls: type) -> None:
    weight = torch.randn(24, 16)
    kept, state = weight.clone(), torch.get_rng_state()
    layer = as_factors(weight, cls, rank=16)[0]
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    assert torch.equal(weight, kept)


@every
@shapes
def test_structure_names_the_layers_own_parameters(cls: type, into: int, out: int) -> None:
    layer = make(cls, into, out)
    own = {id(p) for p in layer.parameters()}
    for a, b in layer.factor_pairs():
        assert {id(a), id(b)} <= own
        assert (a.shape[0], b.shape[0]) == (out, into)
        assert a.shape[1] == b.shape[1]
        torch.testing.assert_close(a @ b.mT, layer.materialize(), rtol=0, atol=1e-6)
    for parameter in layer.orthonormal():
        assert id(parameter) in own
        assert parameter.shape[0] >= parameter.shape[1]
        assert float(orthonormality_error(parameter)) <= 1e-5
    assert all(p.is_contiguous() for p in layer.parameters())


@every
@shapes
def test_flops_are_those_of_the_forward_pass(cls: type, into: int, out: int) -> None:
    layer = make(cls, into, out)
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(1, into))
    products = counter.get_total_flops()
    assert products <= layer.flops_per_token <= 1.05 * products  # the counter sees matrix products only


@every
def test_gradients_reach_every_parameter_and_the_input(cls: type) -> None:
    layer = make(cls, 24, 40).double()
    x = torch.randn(3, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    layer(x).square().sum().backward()
    for parameter in [x, *layer.parameters()]:
        assert parameter.grad is not None
        assert float(parameter.grad.norm()) > 0


@every
def test_under_bfloat16_autocast_the_output_is_bfloat16_and_the_gradients_float32(cls: type) -> None:
    layer = make(cls, 24, 40)
    x = torch.randn(3, 24)
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=0.1, atol=0.1)
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())


@every
def test_a_meta_layer_has_the_shapes_and_no_storage(cls: type) -> None:
    with torch.device("meta"):
        layer = make(cls, 4096, 8192, rank=512)
    assert all(p.is_meta for p in layer.parameters())
    shapes_of = lambda one: {name: tuple(p.shape) for name, p in one.named_parameters()}  # noqa: E731
    with torch.device("meta"):
        small = make(cls, 24, 40)
    assert shapes_of(small) == shapes_of(make(cls, 24, 40))


@every
def test_a_state_dict_restores_the_weight(cls: type) -> None:
    layer, other = make(cls, 24, 40), make(cls, 24, 40)
    assert not torch.equal(layer.materialize(), other.materialize())
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer.materialize(), other.materialize())


# Every factorized projection


@every_factorized
@shapes
@pytest.mark.parametrize("rank", [1, 7, 15])
def test_factors_of_a_rank_are_the_best_approximation(cls: type, into: int, out: int, rank: int) -> None:
    weight = torch.randn(out, into)
    error = (weight - as_factors(weight, cls, rank=rank)[0].materialize()).detach().double()
    values = torch.linalg.svdvals(weight.double())
    assert reference.norm(error) == pytest.approx(float(values[rank]), rel=1e-4)
    assert float(error.norm()) == pytest.approx(float(values[rank:].norm()), rel=1e-4)


@every_factorized
def test_factors_of_an_energy_have_the_smallest_rank(cls: type) -> None:
    weight = torch.zeros(10, 6)
    weight[:3, :3] = torch.diag(torch.tensor([2.0, 1.0, 1.0]))
    assert [as_factors(weight, cls, energy=share)[0].rank for share in (0.5, 0.8, 1.0)] == [1, 2, 3]


@every_factorized
def test_the_rank_is_the_ratio_of_the_input_width(cls: type) -> None:
    assert cls(64, 100, rank_ratio=0.25).rank == 16
    assert cls(64, 12, rank_ratio=0.25).rank == 12
    assert cls(64, 8, rank_ratio=1).rank == 8
    assert cls(2, 8, rank_ratio=0.01).rank == 1


@every_factorized
@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"rank": 4, "rank_ratio": 0.25},
        *({"rank": rank} for rank in (-1, 0, 17)),
        *({"rank_ratio": ratio} for ratio in (-0.5, 0.0, 1.01)),
    ],
)
def test_a_rank_out_of_range_is_refused(cls: type, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="rank"):
        cls(16, 24, **wrong)


@every_factorized
@pytest.mark.parametrize(
    "wrong", [{}, {"rank": 4, "energy": 0.5}, {"rank": 0}, {"rank": 17}, {"energy": 0.0}, {"energy": 1.5}]
)
def test_factors_refuse_values_out_of_range(cls: type, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"rank|energy"):
        as_factors(torch.randn(24, 16), cls, **wrong)


@given(st.integers(1, 4096), st.integers(1, 4096), st.floats(1e-4, 1))
def test_every_ratio_gives_a_rank_that_a_rank_argument_accepts(into: int, out: int, ratio: float) -> None:
    rank = resolve_rank(into, out, None, ratio)
    assert resolve_rank(into, out, rank, None) == rank
    assert rank == min(into, out) or abs(rank - ratio * into) <= 0.5 or rank == 1


# Initialization


@every_factorized
@pytest.mark.parametrize(("into", "out"), [(256, 256), (256, 400), (400, 256)])
def test_initially_the_singular_values_are_the_leading_ones_of_a_dense_draw(cls: type, into: int, out: int) -> None:
    values = torch.linalg.svdvals(cls(into, out, rank=64).materialize())[:64]
    torch.testing.assert_close(values, torch.linalg.svdvals(DenseLinear(into, out).weight)[:64], rtol=0.04, atol=0)


@every
@shapes
def test_initially_the_spectral_norm_is_that_of_a_gaussian_weight(cls: type, into: int, out: int) -> None:
    norms = [reference.norm(make(cls, 8 * into, 8 * out, rank=into).materialize()) for _ in range(4)]
    assert sum(norms) / len(norms) == pytest.approx(1 + math.sqrt(out / into), rel=0.05)


def test_low_rank_factors_share_the_singular_values_evenly() -> None:
    layer = LowRankLinear(24, 40, rank=6)
    values = torch.linalg.svdvals(layer.materialize())[:6]
    for factor in (layer.A, layer.B):
        torch.testing.assert_close(factor.mT @ factor, torch.diag(values), rtol=0, atol=1e-5)


def test_std_is_the_standard_deviation_of_the_dense_draw() -> None:
    for cls in (DenseLinear, LowRankLinear):
        weight = cls(64, 64, std=0.5, **({"rank": 64} if cls is LowRankLinear else {})).materialize()
        assert float(weight.detach().std()) == pytest.approx(0.5, rel=0.05)


def test_spectral_init_of_the_paper_has_its_scale_and_orthonormal_bases() -> None:
    layer = SpectralLinear(24, 40, rank=6, init="paper")
    torch.testing.assert_close(layer.s, torch.full((6,), math.sqrt(2 * 40 / (24 * 6))))
    for basis in layer.orthonormal():
        assert float(orthonormality_error(basis)) <= 1e-5
