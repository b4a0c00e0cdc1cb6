"""What is said of a weight without forming it, against the same from the weight itself in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import reference
from lrtrain.linalg import diagnostics
from lrtrain.linalg.diagnostics import (
    DenseMatrix,
    ThinProduct,
    dead_directions,
    effective_rank,
    stable_rank,
    thin_change,
)

sizes = st.integers(1, 24)
seeds = st.integers(0, 10_000)
scales = st.integers(-12, 12).map(lambda power: 10.0**power)


def factors(out: int, into: int, rank: int, seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """A and B of condition 30; `scale` goes to one and from the other."""
    return reference.matrix(out, rank, 30, seed) * scale, reference.matrix(into, rank, 30, seed + 1) / scale


def assert_like(found: ThinProduct | DenseMatrix, matrix: Tensor, size: float | None = None) -> None:
    """Norms, singular values and outputs of M, to 1e-6 of them and 1e-7 of `size`."""
    values = torch.linalg.svdvals(matrix)
    close = {"rel": 1e-6, "abs": 1e-7 * (float(values[0]) if size is None else size)}
    assert float(found.norm) == pytest.approx(float(values[0]), **close)
    assert float(found.frobenius) == pytest.approx(float(matrix.norm()), **close)
    assert found.sigma is not None
    count = min(len(values), len(found.sigma))
    assert found.sigma[:count].tolist() == pytest.approx(values[:count].tolist(), **close)
    assert float(found.sigma[count:].sum()) <= 1e-6 * float(values[0])
    x = torch.randn(5, matrix.shape[1], dtype=torch.float64)
    plain = float((x @ matrix.mT).square().mean().sqrt())
    assert float(found.output_rms(x)) == pytest.approx(plain, **close)


@given(sizes, sizes, sizes, seeds, scales)
def test_a_product_is_known_through_its_factors(out: int, into: int, rank: int, seed: int, scale: float) -> None:
    a, b = factors(out, into, rank, seed, scale)
    found = ThinProduct(a, b)
    assert_like(found, a @ b.mT)
    assert [float(norm) for norm in found.factor_norms()] == pytest.approx(
        [reference.norm(a), reference.norm(b)], rel=1e-6
    )


@given(sizes, sizes, sizes, seeds, scales, st.integers(-9, 0))
def test_a_change_is_known_through_the_factors_before_and_after(
    out: int, into: int, rank: int, seed: int, scale: float, power: int
) -> None:
    old = factors(out, into, rank, seed, scale)
    a, b = factors(out, into, rank, seed + 2, scale)
    new = (old[0] + 10.0**power * a, old[1] + 10.0**power * b)
    left, right = thin_change(old, new)
    assert left.shape == (out, 2 * rank)
    da, db = new[0] - old[0], new[1] - old[1]
    # The digits of the difference, which A'B'ᵀ − ABᵀ itself would have lost.
    assert_like(ThinProduct(left, right), da @ new[1].mT + old[0] @ db.mT, size=10.0**power)


@given(sizes, sizes, seeds, scales)
def test_a_dense_matrix_is_known_whatever_its_shape(rows: int, columns: int, seed: int, scale: float) -> None:
    matrix = reference.matrix(rows, columns, 30, seed) * scale
    assert_like(DenseMatrix(matrix), matrix)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_of_a_large_dense_matrix_the_norm_is_found_by_iteration(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnostics, "EXACT", 39)
    state = torch.get_rng_state()
    for matrix in (torch.randn(shape), reference.matrix(*shape, 1.7, 3).float()):
        before = torch.get_rng_state()
        found = DenseMatrix(matrix)
        assert torch.equal(torch.get_rng_state(), before)
        assert found.sigma is None
        assert 0.99 * reference.norm(matrix) <= float(found.norm) <= reference.norm(matrix) * (1 + 1e-6)
        assert float(found.frobenius) == pytest.approx(float(matrix.norm()), rel=1e-6)
    assert not torch.equal(torch.get_rng_state(), state)  # the test's own draw


@given(sizes, sizes, seeds, scales, st.booleans())
def test_squaring_finds_the_largest_eigenvalue(rows: int, rank: int, seed: int, scale: float, flat: bool) -> None:
    x = reference.matrix(rows, rank, 1 if flat else 30, seed) * scale
    s = x.mT @ x
    assert float(diagnostics._by_squaring(s)) == pytest.approx(reference.norm(x) ** 2, rel=2e-6)
    assert float(diagnostics._by_squaring(0 * s)) <= 1e-300


def test_factors_in_float32_are_measured_in_float64() -> None:
    a, b = (factor.float() for factor in factors(30, 20, 4, 0))
    plain = a.double() @ b.double().mT
    assert float(ThinProduct(a, b).norm) == pytest.approx(reference.norm(plain), rel=1e-12)


def test_a_matrix_of_zeros_has_norm_rank_and_output_zero() -> None:
    zero = torch.zeros(6, 3)
    for found in (ThinProduct(zero, zero), DenseMatrix(zero), ThinProduct(zero, torch.ones(6, 3))):
        assert found.sigma is not None
        figures = (found.norm, found.frobenius, effective_rank(found.sigma), stable_rank(found.sigma))
        assert [float(figure) for figure in figures] == [0, 0, 0, 0]
        assert float(dead_directions(found.sigma)) == 1
        assert float(found.output_rms(torch.ones(2, zero.shape[0 if isinstance(found, ThinProduct) else 1]))) == 0


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_weight_that_is_not_finite_gives_nan_and_no_error(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    a = torch.ones(6, 3)
    a[2, 1] = bad
    found: list[ThinProduct | DenseMatrix] = [
        ThinProduct(a, torch.ones(5, 3)),
        ThinProduct(torch.ones(5, 3), a),
        DenseMatrix(a),
    ]
    monkeypatch.setattr(diagnostics, "EXACT", 2)
    found.append(DenseMatrix(a))
    assert all(math.isnan(float(each.norm)) for each in found)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=12), scales)
def test_ranks_are_those_of_their_definitions_whatever_the_scale(values: list[float], scale: float) -> None:
    sigma = torch.tensor(values, dtype=torch.float64) * scale
    shares = [value / sum(values) for value in values]
    entropy = -sum(share * math.log(share) for share in shares)
    assert float(effective_rank(sigma)) == pytest.approx(math.exp(entropy), rel=1e-9)
    squares = [value**2 for value in values]
    assert float(stable_rank(sigma)) == pytest.approx(sum(squares) / max(squares), rel=1e-9)
    assert 1 - 1e-9 <= float(stable_rank(sigma)) <= len(values) + 1e-9
    assert 1 - 1e-9 <= float(effective_rank(sigma)) <= len(values) + 1e-9


def test_equal_directions_all_count_and_tiny_ones_are_dead() -> None:
    assert float(effective_rank(torch.full((7,), 3.0))) == pytest.approx(7)
    assert float(stable_rank(torch.full((7,), 3.0))) == pytest.approx(7)
    sigma = torch.tensor([[1.0, 0.5, 0.0011, 0.0009], [2.0, 0.0, 0.0, 0.0]])
    assert dead_directions(sigma).tolist() == [0.25, 0.75]
