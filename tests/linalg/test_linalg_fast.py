"""The fast forms: bounds that hold, precision of bfloat16, any conditioning and scale, lists of any shapes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import reference
from lrtrain.linalg import (
    norm_bound,
    orthonormality_error,
    orthonormalize,
    orthonormalize_,
    polar,
    spectral_norm,
)
from lrtrain.linalg.newton_schulz import POLAR_EXPRESS, polynomials, rounds

sizes = st.integers(1, 24)
seeds = st.integers(0, 2**31)
exponents = st.integers(-30, 30)
spectra = st.sampled_from(["flat", "1/k", "1/k²", "1e-6", "one", "deficient", "zero"])


def spectrum(kind: str, rows: int, columns: int, seed: int) -> Tensor:
    """A float64 matrix (rows, columns) with random singular vectors and singular values of a kind."""
    smaller = min(rows, columns)
    k = torch.arange(1, smaller + 1, dtype=torch.float64)
    values = {
        "flat": torch.ones_like(k),
        "1/k": 1 / k,
        "1/k²": 1 / k**2,
        "1e-6": 10 ** torch.linspace(0, -6, smaller, dtype=torch.float64),
        "one": (k == 1).double(),
        "deficient": (k <= (smaller + 1) // 2).double(),
        "zero": torch.zeros_like(k),
    }[kind]
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, smaller, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, smaller, generator=generator, dtype=torch.float64)).Q
    return (left * values) @ right.mT


def composite(s: float, steps: int, coefficients: str) -> float:
    for a, b, c in polynomials(coefficients, steps):
        s = a * s + b * s**3 + c * s**5
    return s


# polar


@given(spectra, sizes, sizes, exponents, seeds)
def test_polar_of_any_spectrum_and_scale_is_finite_and_bounded(
    kind: str, rows: int, columns: int, exponent: int, seed: int
) -> None:
    x = (spectrum(kind, rows, columns, seed) * 10.0**exponent).float()
    for precision in ("float32", "bfloat16"):
        for coefficients in ("paper", "polar_express"):
            o = polar(x, coefficients=coefficients, precision=precision)
            assert reference.norm(o) <= 1.3


@pytest.mark.parametrize("kind", reference.MOMENTA)
@pytest.mark.parametrize("shape", [(768, 192), (2048, 128), (512, 512), (1024, 32)])
def test_float32_is_as_close_to_float64_as_the_steps_on_the_matrix_itself(kind: str, shape: tuple[int, int]) -> None:
    x = reference.momentum(kind, *shape)
    usual = reference.distance(reference.usual_newton_schulz(x, torch.float32), x)
    assert reference.distance(polar(x), x) <= min(15 * usual, 3e-4)


@pytest.mark.parametrize("kind", reference.MOMENTA)
@pytest.mark.parametrize("shape", [(768, 192), (400, 100), (512, 512), (1024, 32)])
def test_bfloat16_is_as_close_to_float64_as_the_usual_iteration_in_bfloat16(kind: str, shape: tuple[int, int]) -> None:
    x = reference.momentum(kind, *shape)
    usual = reference.usual_newton_schulz(x, torch.bfloat16)
    ours = polar(x, precision="bfloat16")
    assert reference.distance(ours, x) <= 1.1 * reference.distance(usual, x)
    assert reference.norm(ours) <= 1.25


@pytest.mark.parametrize("coefficients", ["paper", "polar_express"])
@pytest.mark.parametrize("kind", ["1/k²", "1e-6", "one", "deficient", "zero"])
def test_bfloat16_of_a_degenerate_matrix_is_finite_and_bounded(kind: str, coefficients: str) -> None:
    for scale in (1e-30, 1.0, 1e30):
        x = (spectrum(kind, 256, 96, 0) * scale).float()
        assert reference.norm(polar(x, 5, coefficients, "bfloat16")) <= 1.5


@pytest.mark.parametrize("steps", [1, 5, 8, 10])
def test_polar_express_is_the_published_sequence(steps: int) -> None:
    x = reference.matrix(12, 5, 100, 0)
    plain = x / (x.norm() * 1.01)
    for number in range(steps):
        a, b, c = POLAR_EXPRESS[min(number, 7)]
        if number < 7:
            a, b, c = a / 1.01, b / 1.01**3, c / 1.01**5
        gram = plain @ plain.mT
        plain = a * plain + (b * gram + c * gram @ gram) @ plain
    torch.testing.assert_close(polar(x, steps, "polar_express"), plain, rtol=0, atol=1e-10)


@given(st.floats(1e-3, 1), st.integers(1, 12))
def test_polar_express_brings_every_value_from_a_thousandth_to_one_near_one(s: float, extra: int) -> None:
    assert composite(s, 5, "polar_express") == pytest.approx(1, abs=0.25)
    assert composite(s, 8 + extra, "polar_express") == pytest.approx(1, abs=1e-3)


@given(st.floats(1e-3, 1), st.sampled_from(["paper", "polar_express"]), st.integers(1, 10), seeds)
def test_the_singular_values_of_polar_are_those_of_the_composed_polynomials(
    s: float, coefficients: str, steps: int, seed: int
) -> None:
    x = spectrum("flat", 9, 3, seed) * torch.tensor([1.0, s, s**2], dtype=torch.float64).norm() ** -1
    x = x @ torch.diag(torch.tensor([1.0, s, s**2], dtype=torch.float64))
    scale = float(x.norm())
    expected = sorted(
        (composite(v / scale, steps, coefficients) for v in torch.linalg.svdvals(x).tolist()), reverse=True
    )
    found = torch.linalg.svdvals(polar(x, steps, coefficients))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64).abs().sort(descending=True)[0])


def test_more_steps_than_one_gram_matrix_can_serve_stay_exact() -> None:
    assert [len(run) for run in rounds(polynomials("paper", 5))] == [2, 3]
    assert [len(run) for run in rounds(polynomials("polar_express", 8))] == [2, 2, 4]
    assert [len(run) for run in rounds(polynomials("paper", 13))] == [1, 3, 3, 3, 3]
    x = spectrum("1e-6", 96, 24, 0).float()
    usual = reference.distance(reference.usual_newton_schulz(x, torch.float32, 12), x, 12)
    assert reference.distance(polar(x, steps=12), x, 12) <= 15 * usual


def test_polar_refuses_unknown_coefficients_and_no_steps() -> None:
    x = torch.randn(4, 2)
    for options, message in (({"coefficients": "fast"}, "polar_express"), ({"steps": 0}, "at least 1")):
        with pytest.raises(ValueError, match=message):
            polar(x, **options)


# lists


@given(st.lists(st.tuples(sizes, sizes), max_size=6), seeds)
def test_a_list_gives_what_each_matrix_alone_gives(shapes: list[tuple[int, int]], seed: int) -> None:
    xs = [reference.matrix(max(s), min(s), 20, seed + i) for i, s in enumerate(shapes)]
    start = [torch.ones(x.shape[1], dtype=torch.float64) / x.shape[1] ** 0.5 for x in xs]
    torch.testing.assert_close(polar(xs), [polar(x) for x in xs])
    torch.testing.assert_close(norm_bound(xs), [norm_bound(x) for x in xs])
    torch.testing.assert_close(orthonormalize(xs)[0], [orthonormalize(x)[0] for x in xs])
    alone = [spectral_norm(x, v, 2) for x, v in zip(xs, start, strict=True)]
    torch.testing.assert_close(spectral_norm(xs, start, 2), ([a for a, _ in alone], [b for _, b in alone]))


# norm_bound


@given(spectra, sizes, sizes, exponents, seeds)
def test_norm_bound_is_never_below_the_norm_and_close_to_it(
    kind: str, rows: int, columns: int, exponent: int, seed: int
) -> None:
    x = (spectrum(kind, rows, columns, seed) * 10.0**exponent).float()
    exact = reference.norm(x)
    assert exact <= float(norm_bound(x)) <= 1.04 * exact


def test_norm_bound_is_close_for_the_largest_factors_too() -> None:
    for kind in ("flat", "1/k"):
        x = spectrum(kind, 1024, 384, 0).float()
        assert 1 <= float(norm_bound(x)) <= 1.08


# orthonormalize


@given(spectra, sizes, sizes, exponents, seeds)
def test_orthonormalize_of_any_spectrum_and_scale_is_orthonormal_and_gives_the_matrix_back(
    kind: str, rows: int, columns: int, exponent: int, seed: int
) -> None:
    x = (spectrum(kind, max(rows, columns), min(rows, columns), seed) * 10.0**exponent).float()
    q, r = orthonormalize(x)
    assert float(orthonormality_error(q)) <= 5e-6
    assert (r.diagonal() >= 0).all()
    torch.testing.assert_close(q @ r, x, rtol=0, atol=5e-6 * 10.0**exponent)


@pytest.mark.parametrize("rank", [32, 128, 256])
@pytest.mark.parametrize("rows", [256, 1024, 4096])
def test_near_the_manifold_it_is_the_sign_corrected_qr_to_rounding(rows: int, rank: int) -> None:
    torch.manual_seed(0)
    x = torch.linalg.qr(torch.randn(rows, rank)).Q + 1e-3 * torch.randn(rows, rank) / rows**0.5
    q, r = orthonormalize(x)
    exact, upper = torch.linalg.qr(x.double())
    sign = upper.diagonal().sign()
    torch.testing.assert_close(q.double(), exact * sign, rtol=0, atol=1e-6)
    torch.testing.assert_close(r.double(), upper * sign[:, None], rtol=0, atol=1e-5)
    assert float(orthonormality_error(q.double())) <= 1e-6


@given(st.lists(st.tuples(sizes, sizes), min_size=1, max_size=5), st.booleans(), seeds)
def test_in_place_it_gives_the_same(shapes: list[tuple[int, int]], near: bool, seed: int) -> None:
    xs = [reference.matrix(max(s), min(s), 1.1 if near else 1e3, seed + i).float() for i, s in enumerate(shapes)]
    xs.append(xs[0].clone())
    bases, factors = orthonormalize(xs)
    changed = [x.clone() for x in xs]
    torch.testing.assert_close(orthonormalize_(changed), factors)
    torch.testing.assert_close(changed, bases)


def test_in_place_a_long_matrix_is_overwritten_part_by_part() -> None:
    x = torch.linalg.qr(torch.randn(9000, 32)).Q.contiguous() + 1e-4 * torch.randn(9000, 32)
    q, r = orthonormalize(x)
    rows = x.data_ptr()
    torch.testing.assert_close(orthonormalize_([x])[0], r)
    torch.testing.assert_close(x, q, rtol=0, atol=1e-6)
    assert x.data_ptr() == rows
