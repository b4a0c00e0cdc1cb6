"""Functions of tall matrices on rows spread over processes, against the same on the whole."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import reference
from lrtrain.constraints import PartnerMetric
from lrtrain.linalg import (
    gram,
    inner,
    inverse_root,
    norm_bound,
    orthonormality_error,
    orthonormalize,
    orthonormalize_,
    polar,
    polar_in_metric,
    spectral_norm,
)
from lrtrain.optim import LoRAMuon, Spectron
from ranks import on_ranks

# On three processes: two uneven splits, one that leaves the last process empty, and two of equal shape.
SHAPES = [(24, 6), (10, 4), (4, 3), (24, 6), (7, 7)]


def matrices(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [reference.matrix(m, r, 20, seed).to(dtype) * 10.0 ** (seed - 2) for seed, (m, r) in enumerate(SHAPES)]


def mesh_of(count: int) -> DeviceMesh:
    return init_device_mesh("cpu", (count,))


def sharded(xs: list[Tensor], mesh: DeviceMesh, placements: tuple[Any, ...] = (Shard(0),)) -> list[Tensor]:
    return [distribute_tensor(x, mesh, placements, src_data_rank=None) for x in xs]


def full(xs: list[Tensor]) -> list[Tensor]:
    return [x.full_tensor() if isinstance(x, DTensor) else x for x in xs]


def results(xs: list[Tensor]) -> dict[str, list[Tensor]]:
    """What every function gives for a list, whole."""
    start = [torch.ones(x.shape[1], dtype=torch.float64) / x.shape[1] ** 0.5 for x in xs]
    sigma, vectors = spectral_norm(xs, start, steps=3)
    q, r = orthonormalize(xs)
    near, _ = orthonormalize(q)
    place = [x.clone() for x in xs]
    orthonormalize_(place)
    return {
        "gram": gram(xs),
        "inner": [inner(x, x * 2) for x in xs],
        "polar": full(polar(xs)),
        "polar of many steps": full(polar(xs, steps=9, coefficients="polar_express")),
        "root": inverse_root(xs),
        "in metric": full(polar_in_metric(xs, inverse_root([2 * x for x in xs]))),
        "sigma": sigma,
        "vectors": vectors,
        "bound": norm_bound(xs),
        "q": full(q),
        "r": r,
        "near": full(near),
        "in place": full(place),
        "error": [orthonormality_error(x) for x in q],
    }


def compare_with_whole(count: int) -> None:
    xs = matrices()
    xs[2][:, 1] = xs[2][:, 0]  # rank-deficient: Householder, and its columns beyond the rank are arbitrary but equal
    mesh = mesh_of(count)
    whole, spread = results(xs), results(sharded(xs, mesh))
    for name, expected in whole.items():
        for index, (a, b) in enumerate(zip(spread[name], expected, strict=True)):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=f"{name} of matrix {index} differs")
    factor = polar(sharded(xs, mesh)[1])
    assert isinstance(factor, DTensor)
    assert factor.placements == (Shard(0),)
    torch.testing.assert_close(factor.full_tensor(), polar(xs[1]))


@pytest.mark.parametrize("count", [2, 3])
def test_rows_on_several_processes_give_what_the_whole_matrix_gives(count: int) -> None:
    on_ranks(count, compare_with_whole, count)


def compare_low_ranks(count: int) -> None:
    mesh = mesh_of(count)
    for kind in reference.MOMENTA:
        x = reference.momentum(kind, 400, 100)
        spread, in_bfloat16 = (full(polar(sharded([x], mesh), precision=p))[0] for p in ("float32", "bfloat16"))
        usual, rough = (
            reference.distance(reference.usual_newton_schulz(x, dtype), x) for dtype in (torch.float32, torch.bfloat16)
        )
        assert reference.distance(spread, x) <= min(15 * usual, 3e-4), kind
        # In bfloat16 one process has the rounding of the usual iteration, several have none of it.
        assert float((in_bfloat16 - polar(x, precision="bfloat16")).norm() / spread.norm()) <= 1.1 * rough + 3e-4, kind


def test_momenta_of_the_lowest_ranks_are_as_exact_on_several_processes() -> None:
    on_ranks(2, compare_low_ranks, 2)


def compare_in_hybrid() -> None:
    mesh = init_device_mesh("cpu", (2, 2))
    xs = matrices()
    whole, spread = results(xs), results(sharded(xs, mesh, (Replicate(), Shard(0))))
    for name in ("gram", "polar", "sigma", "q", "bound"):
        torch.testing.assert_close(spread[name], whole[name], rtol=1e-9, atol=1e-9)


def test_replicas_of_shards_give_what_the_whole_matrix_gives() -> None:
    on_ranks(4, compare_in_hybrid)


def counted(function: Callable[[], Any]) -> list[tuple[int, int]]:
    """(numbers, bytes) of each all-reduce during a call; every other collective fails."""
    calls: list[tuple[int, int]] = []
    kept = dist.all_reduce

    def count(tensor: Tensor, **options: Any) -> Any:
        calls.append((tensor.numel(), tensor.numel() * tensor.element_size()))
        return kept(tensor, **options)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a collective other than all_reduce")

    others = ("all_gather", "all_gather_into_tensor", "broadcast", "reduce_scatter_tensor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", count)
        for name in others:
            patch.setattr(dist, name, refuse)
        function()
    return calls


def count_a_step() -> list[tuple[int, int]]:
    mesh = mesh_of(2)
    parameters = [torch.nn.Parameter(x) for x in sharded(matrices(torch.float32), mesh)]
    for parameter, gradient in zip(parameters, sharded(matrices(torch.float32), mesh), strict=True):
        parameter.grad = gradient
    return counted(Spectron(parameters, lr=0.1).step)


def test_a_spectron_step_is_two_flat_all_reduces_of_half_gram_matrices_and_one_of_their_scales() -> None:
    triangles = sum(r * (r + 1) // 2 for _, r in SHAPES)
    assert on_ranks(2, count_a_step)[0] == [(len(SHAPES), 4 * len(SHAPES)), *2 * [(triangles, 4 * triangles)]]


def count_a_step_in_metric() -> list[tuple[int, int]]:
    mesh = mesh_of(2)
    shapes = [(24, 6), (10, 6), (9, 4), (4, 4)]
    drawn = [reference.matrix(m, r, 20, seed).float() for seed, (m, r) in enumerate(shapes)]
    parameters = [torch.nn.Parameter(x) for x in sharded(drawn, mesh)]
    for parameter, gradient in zip(parameters, sharded(drawn, mesh), strict=True):
        parameter.grad = gradient
    optimizer = LoRAMuon(parameters)
    constraint = PartnerMetric().hold({"a": tuple(parameters[:2]), "b": tuple(parameters[2:])})
    return counted(lambda: (constraint.before_step(optimizer), optimizer.step()))


def test_a_step_in_the_metric_of_the_other_factor_adds_one_flat_all_reduce() -> None:
    triangles = 2 * (21 + 10)
    scales = (4, 16)
    expected = [(triangles, 4 * triangles), scales, *2 * [(triangles, 4 * triangles)]]
    assert on_ranks(2, count_a_step_in_metric)[0] == expected


def refuse_columns() -> None:
    x = distribute_tensor(torch.randn(8, 4), mesh_of(2), [Shard(1)])
    for call in (lambda: polar(x), lambda: Spectron([torch.nn.Parameter(x)])):
        with pytest.raises(ValueError, match="shard by rows"):
            call()


def test_columns_on_several_processes_are_refused() -> None:
    on_ranks(2, refuse_columns)
