"""Projections of lower rank, by a rank or by a share of the energy, as they leave."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrtrain.checkpoint.huggingface.llama_layout import dense_weight, factors
from lrtrain.linalg import energy_rank, product_svd, truncated_svd
from lrtrain.nn import Decoder, LowRankLinear, SpectralLinear
from lrtrain.nn.projection import projections
from lrtrain.runtime.errors import UserError


@dataclass(frozen=True)
class Truncation:
    """How many of all projections have a lower rank now, and the mean rank of these before and after."""

    changed: int
    of: int
    before: float
    after: float


@torch.no_grad()
def truncate(decoder: Decoder, rank: int | None, energy: float | None) -> Truncation:
    """Replaces projections by their best approximations of a rank, or that hold a share of Σσ², one after another.

    Spectral ones stay spectral, the others become low-rank. A dense one stays where its factors would be more numbers
    than it has; a factorized one whose rank is no larger stays.

    Raises:
        UserError: not exactly one of the two is given, a value is out of range, or nothing changes.
    """
    check_truncation(rank, energy)
    found = projections(decoder)
    before, after = [], []
    for name, one in found.items():
        old, new = _shortened(name, one, rank, energy)
        if new is None:
            continue
        parent, _, last = name.rpartition(".")
        setattr(decoder.get_submodule(parent), last, new)
        before.append(old)
        after.append(new.rank)
    if not before:
        asked = f"--truncate-rank {rank}" if energy is None else f"--energy {energy:g}"
        raise UserError(f"{asked}: none of the {len(found)} projections would have fewer numbers; give less")
    return Truncation(len(before), len(found), sum(before) / len(before), sum(after) / len(after))


def check_truncation(rank: int | None, energy: float | None) -> None:
    """Raises UserError unless exactly one of the two is given, and in range."""
    if (rank is None) == (energy is None):
        raise UserError("give either --truncate-rank or --energy, not both")
    if rank is not None and rank < 1:
        raise UserError(f"--truncate-rank {rank}: must be at least 1")
    if energy is not None and not 0 < energy <= 1:
        raise UserError(f"--energy {energy:g}: must be in (0, 1], a share of the sum of squared singular values")


def _shortened(name: str, one: Any, rank: int | None, energy: float | None) -> tuple[int, Any]:
    """The rank of a projection, and another with a lower one; None where that has no fewer numbers."""
    kept = factors(one)
    if kept is None:
        weight = dense_weight(one).float()
        _check_finite(name, weight)
        old = min(weight.shape)
        new = (
            energy_rank(torch.linalg.svdvals(weight.double()), energy) if energy is not None else min(rank or old, old)
        )
        if new * sum(weight.shape) >= weight.numel():
            return old, None
        return old, _made(LowRankLinear, *truncated_svd(weight, new))
    kind, parts = kept
    left, right = (parts["A"], parts["B"]) if kind == "low_rank" else (parts["V"] * parts["s"], parts["U"])
    old = left.shape[1]
    if rank is not None and rank >= old:
        return old, None
    for part in (left, right):
        _check_finite(name, part)
    p, sigma, q = product_svd(left.detach(), right.detach())
    new = energy_rank(sigma, energy) if energy is not None else min(rank or old, old)
    if new >= old:
        return old, None
    made = _made(LowRankLinear if kind == "low_rank" else SpectralLinear, p[:, :new], sigma[:new], q[:, :new])
    return old, made


def _made(kind: type[LowRankLinear | SpectralLinear], p: Tensor, sigma: Tensor, q: Tensor) -> nn.Module:
    with torch.device("meta"):  # the random initialization would be thrown away
        layer = kind(q.shape[0], p.shape[0], rank=len(sigma))
    layer.to_empty(device=p.device)
    layer.set_triplets(p, sigma, q)
    return layer.eval()


def _check_finite(name: str, weight: Tensor) -> None:
    if not weight.isfinite().all():
        raise UserError(f"export: {name} holds NaN or infinite numbers; name an earlier checkpoint")
