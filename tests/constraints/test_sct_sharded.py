"""Optimizer and constraints of SCT on row-sharded parameters: two processes end where one does."""

import datetime
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.optim import AdamW

from lrtrain.constraints import (
    BalancedRenormalization,
    Constraint,
    FunctionPreservingRetraction,
    StiefelRetraction,
    TangentProjection,
)
from lrtrain.optim import CombinedOptimizer, Stiefel
from ranks import on_ranks

SHAPES = {"a": (13, 9, 5), "b": (13, 9, 5), "c": (6, 17, 4), "d": (3, 3, 1)}  # in, out, rank: none divides by two
CASES = {
    "qr": ("polar", False, False, False),
    "qr, tangent": ("adam", False, True, False),
    "preserving": ("adam", True, False, False),
    "preserving, tangent": ("polar", True, True, False),
    "preserving, bounded": ("polar", True, False, True),
}
STEPS = 5


def train(case: str) -> dict[str, Tensor]:
    """Weights and moments, whole, after some steps towards random matrices."""
    direction, preserving, tangent, bounded = CASES[case]
    generator = torch.Generator().manual_seed(0)
    triples, targets = {}, {}
    for name, (into, out, rank) in SHAPES.items():
        u, v = (torch.linalg.qr(torch.randn(rows, rank, generator=generator)).Q for rows in (into, out))
        s = torch.rand(rank, generator=generator) + 0.5
        triples[name] = tuple(nn.Parameter(_sharded(x)) for x in (u, s, v))
        targets[name] = torch.randn(out, into, generator=generator)
    named = {f"{name}.{part}": p for name, triple in triples.items() for part, p in zip("UsV", triple, strict=True)}
    matrices = {name: p for name, p in named.items() if p.ndim == 2}
    optimizer = CombinedOptimizer(
        [
            Stiefel(list(matrices.items()), lr=0.1, direction=direction),  # type: ignore[arg-type]
            AdamW([(name, p) for name, p in named.items() if p.ndim == 1], lr=0.05),
        ]
    )
    constraints: list[Constraint] = [BalancedRenormalization().hold(triples)] if bounded else []
    if tangent:
        constraints.append(TangentProjection().hold(matrices))
    constraints.append(
        FunctionPreservingRetraction(tangent).hold(triples) if preserving else StiefelRetraction(tangent).hold(matrices)
    )
    for _ in range(STEPS):
        for name, triple in triples.items():
            u, s, v = (_whole(p).detach().requires_grad_() for p in triple)
            ((v * s) @ u.mT - targets[name]).square().sum().backward()
            for p, leaf in zip(triple, (u, s, v), strict=True):
                p.grad = _sharded(leaf.grad)
        for constraint in constraints:
            constraint.before_step(optimizer)
        optimizer.step()
        for constraint in constraints:
            constraint.after_step()
    state = {f"{n}.{key}": value for n, p in named.items() for key, value in optimizer.state[p].items()}
    return {name: _whole(x).detach().clone() for name, x in {**named, **state}.items()}


def train_all() -> dict[str, dict[str, Tensor]]:
    torch.set_default_dtype(torch.float64)  # rotations by close singular values enlarge rounding
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    return {case: train(case) for case in CASES}


def _sharded(x: Tensor) -> Tensor:
    if not dist.is_initialized():
        return x
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    return distribute_tensor(x, mesh, [Shard(0)])


def _whole(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def test_two_processes_end_where_one_does() -> None:
    (alone,) = on_ranks(1, train_all)
    first, second = on_ranks(2, train_all)
    for case, expected in alone.items():
        assert any(float(x.norm()) > 0.1 for x in expected.values())
        for name, x in expected.items():
            error = float((first[case][name] - x).norm() / x.norm())
            assert error <= 1e-9, (case, name, error)
            assert torch.equal(first[case][name], second[case][name]), (case, name)
