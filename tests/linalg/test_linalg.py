"""Polar factor, spectral norm, orthonormal bases and truncated SVD against their plain float64 twins."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
from lrtrain.linalg import (
    orthonormality_error,
    orthonormalize,
    polar,
    rank_for_energy,
    spectral_norm,
    truncated_svd,
)

sizes = st.integers(1, 24)
seeds = st.integers(0, 2**31)
conditions = st.floats(1, 20)


def tall(rows: int, columns: int) -> tuple[int, int]:
    return max(rows, columns), min(rows, columns)


# polar


@given(sizes, sizes, conditions, seeds)
def test_polar_equals_the_plain_iteration(rows: int, columns: int, condition: float, seed: int) -> None:
    x = reference.matrix(rows, columns, condition, seed)
    plain = reference.polar_newton_schulz(x)
    torch.testing.assert_close(polar(x), plain, rtol=0, atol=1e-10)
    torch.testing.assert_close(polar(x.float()).double(), plain, rtol=0, atol=1e-3)


@given(sizes, sizes, conditions, seeds)
def test_polar_keeps_the_singular_vectors_and_brings_the_values_near_one(
    rows: int, columns: int, condition: float, seed: int
) -> None:
    x = reference.matrix(rows, columns, condition, seed)
    o = polar(x.float()).double()
    values = torch.linalg.svdvals(o)
    assert values.min() >= 0.6
    assert values.max() <= 1.25
    assert reference.norm(o - reference.polar_exact(x)) <= 0.4


@given(sizes, sizes, st.integers(-37, 37), seeds)
def test_polar_does_not_depend_on_the_scale(rows: int, columns: int, exponent: int, seed: int) -> None:
    x = reference.matrix(rows, columns, 5, seed).float()
    torch.testing.assert_close(polar(x * 10.0**exponent), polar(x), rtol=0, atol=1e-3)


@given(sizes, sizes)
def test_polar_of_zero_is_zero(rows: int, columns: int) -> None:
    assert torch.equal(polar(torch.zeros(rows, columns)), torch.zeros(rows, columns))


@given(sizes, sizes, seeds)
def test_polar_of_a_wide_matrix_is_the_transpose_of_the_tall_one(rows: int, columns: int, seed: int) -> None:
    x = reference.matrix(rows, columns, 5, seed)
    torch.testing.assert_close(polar(x.mT), polar(x).mT, rtol=0, atol=1e-12)


@given(sizes, sizes, seeds)
def test_polar_of_a_batch_is_that_of_each(rows: int, columns: int, seed: int) -> None:
    batch = torch.stack([reference.matrix(rows, columns, 1 + i, seed + i) * 10.0**i for i in range(3)])
    batch[1] = 0
    torch.testing.assert_close(polar(batch), torch.stack([polar(x) for x in batch]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_polar_of_an_ill_conditioned_matrix_stays_bounded_and_close_to_the_plain_iteration(condition: float) -> None:
    x = reference.matrix(96, 48, condition, 0)
    o = polar(x.float()).double()
    assert reference.norm(o) <= 1.25
    assert reference.norm(o - reference.polar_newton_schulz(x)) <= 1e-2


def test_polar_keeps_dtype_and_takes_bfloat16() -> None:
    x = reference.matrix(32, 8, 5, 0)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert polar(x.to(dtype)).dtype == dtype
    torch.testing.assert_close(
        polar(x.bfloat16()).double(), reference.polar_newton_schulz(x.bfloat16()), rtol=0, atol=1e-2
    )


# spectral_norm


def unit(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    v = torch.randn(*shape, dtype=dtype)
    return v / v.norm(dim=-1, keepdim=True)


@given(sizes, sizes, st.floats(1, 1e3), seeds)
def test_spectral_norm_never_exceeds_and_never_falls(rows: int, columns: int, condition: float, seed: int) -> None:
    x = reference.matrix(rows, columns, condition, seed) * 7
    torch.manual_seed(seed)
    v, last = unit(columns), 0.0
    for _ in range(15):
        sigma, v = spectral_norm(x, v)
        assert last - 1e-12 <= float(sigma) <= reference.norm(x) * (1 + 1e-12)
        assert float(v.norm()) == pytest.approx(1)
        last = float(sigma)


@given(sizes, sizes, seeds)
def test_spectral_norm_converges_over_steps_or_calls(rows: int, columns: int, seed: int) -> None:
    x = reference.matrix(rows, columns, 10, seed)
    torch.manual_seed(seed)
    start = v = unit(columns)
    for _ in range(200):
        sigma, v = spectral_norm(x, v)
    assert float(sigma) == pytest.approx(reference.norm(x), rel=1e-2)
    at_once, same = spectral_norm(x, start, steps=200)
    torch.testing.assert_close((at_once, same), (sigma, v))


def test_spectral_norm_of_a_batch_is_that_of_each_and_leaves_its_arguments_alone() -> None:
    x, v = torch.randn(4, 12, 5), unit(4, 5, dtype=torch.float32)
    x[2] = 0
    kept = v.clone()
    sigma, new = spectral_norm(x, v, steps=3)
    for i in range(4):
        one, vector = spectral_norm(x[i], v[i], steps=3)
        torch.testing.assert_close((sigma[i], new[i]), (one, vector))
    assert torch.equal(v, kept)


def test_spectral_norm_of_zero_is_zero_and_keeps_the_vector() -> None:
    v = unit(5, dtype=torch.float32)
    sigma, new = spectral_norm(torch.zeros(9, 5), v)
    assert float(sigma) == 0
    assert torch.equal(new, v)


def test_spectral_norm_computes_in_float32_and_in_float64_for_float64() -> None:
    v = unit(5, dtype=torch.float32)
    for dtype, expected in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        sigma, new = spectral_norm(torch.randn(9, 5).to(dtype), v)
        assert sigma.dtype == new.dtype == expected


# orthonormalize


@given(sizes, sizes, st.floats(1, 1e4), seeds)
def test_orthonormalize_is_the_qr_with_a_positive_diagonal(
    rows: int, columns: int, condition: float, seed: int
) -> None:
    x = reference.matrix(*tall(rows, columns), condition, seed)
    q, r = orthonormalize(x)
    assert float(orthonormality_error(q)) <= 1e-12
    assert (r.diagonal() >= 0).all()
    assert torch.equal(r, r.triu())
    torch.testing.assert_close(q @ r, x)
    torch.testing.assert_close((q, r), reference.qr(x), rtol=0, atol=1e-8)
    assert q.is_contiguous()


@given(sizes, sizes, seeds)
def test_orthonormalize_changes_nothing_the_second_time(rows: int, columns: int, seed: int) -> None:
    q, _ = orthonormalize(reference.matrix(*tall(rows, columns), 20, seed).float())
    again, r = orthonormalize(q)
    torch.testing.assert_close(again, q, rtol=0, atol=2e-6)
    torch.testing.assert_close(r, torch.eye(len(r)), rtol=0, atol=2e-6)


def test_orthonormalize_of_a_batch_is_that_of_each() -> None:
    x = torch.randn(3, 10, 4, dtype=torch.float64)
    torch.testing.assert_close(orthonormalize(x)[0], torch.stack([orthonormalize(one)[0] for one in x]))


def test_orthonormalize_gives_orthonormal_columns_even_for_a_rank_deficient_matrix() -> None:
    x = torch.randn(10, 4)
    x[:, 2] = x[:, 0]
    for matrix in (x, torch.zeros(10, 4)):
        q, r = orthonormalize(matrix)
        assert float(orthonormality_error(q)) <= 1e-5
        assert (r.diagonal() >= 0).all()
        torch.testing.assert_close(q @ r, matrix, rtol=0, atol=1e-5)


def test_orthonormality_error_is_the_largest_deviation_of_the_gram_matrix() -> None:
    q = torch.eye(6)[:, :3]
    assert float(orthonormality_error(q)) == 0
    assert float(orthonormality_error(q * 2)) == 3
    assert orthonormality_error(torch.stack([q, q * 2])).tolist() == [0, 3]


# truncated_svd


@given(sizes, sizes, st.floats(1, 1e3), seeds, st.data())
def test_truncated_svd_is_the_best_approximation(
    out: int, into: int, condition: float, seed: int, data: st.DataObject
) -> None:
    weight = reference.matrix(out, into, condition, seed)
    rank = data.draw(st.integers(1, min(out, into)))
    values = torch.linalg.svdvals(weight)
    for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 1e-3)):
        p, sigma, q = truncated_svd(weight.to(dtype), rank)
        assert p.shape == (out, rank)
        assert q.shape == (into, rank)
        error = torch.linalg.svdvals(weight - ((p * sigma) @ q.mT).double())
        best = float(values[rank]) if rank < len(values) else 0.0
        assert float(error[0]) <= best + tolerance
        assert float(error.norm()) <= float(values[rank:].norm()) + tolerance
        torch.testing.assert_close(sigma.double(), values[:rank], rtol=0, atol=tolerance)
        assert (sigma.diff() <= tolerance).all()
        assert float(orthonormality_error(p)) <= 1e-5
        assert float(orthonormality_error(q)) <= 1e-5


def test_truncated_svd_of_a_rank_deficient_matrix_is_exact_and_orthonormal_beyond_its_rank() -> None:
    weight = torch.randn(30, 4) @ torch.randn(4, 20)
    p, sigma, q = truncated_svd(weight, 12)
    torch.testing.assert_close((p * sigma) @ q.mT, weight, rtol=0, atol=1e-4)
    assert float(sigma[4:].max()) <= 1e-3 * float(sigma[0])
    assert float(orthonormality_error(p)) <= 1e-5
    assert float(orthonormality_error(q)) <= 1e-5


def test_truncated_svd_keeps_dtype_and_takes_bfloat16() -> None:
    weight = torch.randn(12, 8).bfloat16()
    p, sigma, q = truncated_svd(weight, 8)
    assert p.dtype == sigma.dtype == q.dtype == torch.bfloat16
    torch.testing.assert_close((p * sigma) @ q.mT, weight, rtol=0.05, atol=0.05)


@given(sizes, sizes, seeds, st.floats(0.01, 1))
def test_rank_for_energy_is_the_smallest_that_holds_the_share(out: int, into: int, seed: int, energy: float) -> None:
    weight = reference.matrix(out, into, 50, seed)
    squares = torch.linalg.svdvals(weight) ** 2
    rank = rank_for_energy(weight, energy)
    held = lambda k: float(squares[:k].sum() / squares.sum())  # noqa: E731
    assert held(rank) >= energy - 1e-9
    assert rank == 1 or held(rank - 1) < energy


def test_rank_for_energy_of_known_singular_values() -> None:
    weight = torch.diag(torch.tensor([2.0, 1.0, 1.0]))  # shares 4/6, 5/6, 1
    assert [rank_for_energy(weight, share) for share in (0.5, 4 / 6, 0.7, 5 / 6, 0.9, 1.0)] == [1, 1, 2, 2, 3, 3]
