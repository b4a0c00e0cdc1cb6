"""A weight written in another way: dense, low-rank, spectral, self-guided; and how much of it is kept."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrtrain.linalg import energy_rank, product_svd, rank_for_energy, truncated_svd
from lrtrain.nn.factorized import FactorizedProjection, resolve_rank

EMPTY = 1e-6
"""Singular values below this share of the largest one are none: rounding has made them."""

SAME = 1e-3
"""Largest difference of two ways to compute a projection in float32, as a share of its largest output."""


@dataclass(frozen=True)
class Kept:
    """What a new way to write a weight W keeps of it.

    Attributes:
        rank: Of the new one; None where it is dense.
        energy: The share of Σσ² that it holds, 1 where nothing is lost.
        empty: How many of its singular values are zero, because W has fewer.
    """

    rank: int | None
    energy: float
    empty: int = 0


@torch.no_grad()
def triplets(
    source: Any, rank: int | None = None, energy: float | None = None
) -> tuple[tuple[Tensor, Tensor, Tensor], Kept]:
    """The leading singular triplets P (out, r), σ (r), Q (in, r) of a weight, or of a projection's.

    A product of factors is never formed. At least float32 is computed with.

    Args:
        source: A weight (out, in), or a projection in evaluation: with one, or with a pair A, B or a triple U, s, V.
        rank: r; or give energy, the share of Σσ² that the triplets are to hold.
        energy: In (0, 1].

    Raises:
        ValueError: NaN or an infinity in the weight; rank or energy out of range, or not exactly one of them given; a
            rank above that of the factors, whose further columns would be zero and never train; a projection without
            a weight, or that computes something else.
    """
    if (rank is None) == (energy is None):
        raise ValueError(f"give either rank or energy, not both or neither: rank={rank}, energy={energy}")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy must be in (0, 1], got {energy}")
    kept = None if isinstance(source, Tensor) else factors(source)
    if kept is None:
        weight = _at_least_float32(source.detach() if isinstance(source, Tensor) else dense_weight(source))
        _check_finite(weight)
        if not isinstance(source, Tensor):
            check_computes(source, lambda x: F.linear(x, weight.to(x.dtype)))
        rank = rank_for_energy(weight, energy) if energy is not None else rank
        p, sigma, q = truncated_svd(weight, resolve_rank(weight.shape[1], weight.shape[0], rank, None))
        total = weight.double().square().sum()
    else:
        left, right = _product(*kept)
        for factor in (left, right):
            _check_finite(factor)
        check_computes(source, lambda x: through_factors(x, *kept))
        p, sigma, q = product_svd(left, right)
        total = sigma.double().square().sum()
        rank = energy_rank(sigma, energy) if energy is not None else rank
        rank = resolve_rank(len(right), len(left), rank, None)
        if rank > len(sigma):
            raise ValueError(
                f"rank {rank} of a weight of rank {len(sigma)}: {rank - len(sigma)} columns would be zero and never "
                f"train; give at most {len(sigma)}"
            )
        p, sigma, q = p[:, :rank], sigma[:rank], q[:, :rank]
    share = float(sigma.double().square().sum() / total) if total > 0 else 1.0
    empty = int((sigma <= EMPTY * sigma.max()).sum())
    return (p, sigma, q), Kept(len(sigma), min(share, 1.0), empty)


def as_factors(
    source: Any,
    kind: type[FactorizedProjection],
    rank: int | None = None,
    energy: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[FactorizedProjection, Kept]:
    """A new projection with the best approximation of a weight, and what that keeps of it; draws no random number.

    Args:
        source: As for `triplets`, and `rank` and `energy`, too.
        kind: Its class, made of (in_features, out_features, rank).
        rank: r; or give energy.
        energy: In (0, 1].
        dtype: Of its parameters.

    Raises:
        ValueError: whatever `triplets` refuses.
    """
    (p, sigma, q), kept = triplets(source, rank, energy)
    with torch.device("meta"):  # the random initialization would be thrown away
        layer = kind(q.shape[0], p.shape[0], rank=kept.rank)
    layer.to(dtype).to_empty(device=p.device)
    layer.set_triplets(p, sigma, q)
    return layer, kept


@torch.no_grad()
def write_weight(target: Any, source: Any) -> Kept:
    """Gives a projection, which keeps its way and its rank, the weight of another: the best approximation of that rank.

    Raises:
        ValueError: whatever `triplets` refuses, or `check_conversion`.
    """
    check_conversion(target, source)
    if callable(getattr(target, "set_triplets", None)):
        (p, sigma, q), kept = triplets(source, target.rank)
        target.set_triplets(p, sigma, q)
        check_computes(target, lambda x: (x @ q * sigma) @ p.mT)
        return kept
    weight = dense_weight(source)
    _check_finite(weight)
    check_computes(source, lambda x: F.linear(x, weight))
    target.weight.copy_(weight)
    check_computes(target, lambda x: F.linear(x, weight))
    return Kept(None, 1.0)


def check_conversion(target: Any, source: Any) -> None:
    """Refuses, without reading a number, what `write_weight` could not do.

    Raises:
        ValueError: other features, a target that is neither a product of triplets nor one dense weight, a source that
            has no weight, or a rank above that of its factors.
    """
    sizes = [(one.out_features, one.in_features) for one in (target, source)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"it is {sizes[1]} (out, in), the model's is {sizes[0]}")
    if not has_dense_weight(source):
        raise ValueError(f"{type(source).__name__} has no dense weight: give it a method materialize()")
    if not callable(getattr(target, "set_triplets", None)):
        if not _plain(target):
            raise ValueError(f"{type(target).__name__} cannot be made of a weight: give it set_triplets(P, σ, Q)")
        return
    if not isinstance(getattr(target, "rank", None), int):
        raise ValueError(f"{type(target).__name__} has set_triplets and no rank: give it the attribute")
    kept = factors(source)
    if kept is not None and target.rank > (rank := next(iter(kept[1].values())).shape[1]):
        raise ValueError(
            f"it has rank {rank}, the model's rank {target.rank}: further columns would be zero and never train"
        )


def dense_weight(projection: Any) -> Tensor:
    """W (out, in) of a projection or an `nn.Linear`."""
    stated = getattr(projection, "materialize", None)
    weight: Tensor = stated() if callable(stated) else projection.weight
    return weight.detach()


def has_dense_weight(projection: Any) -> bool:
    """Whether a projection states one: by `materialize()`, or because it has one parameter `weight` (out, in)."""
    return callable(getattr(projection, "materialize", None)) or _plain(projection)


def factors(projection: Any) -> tuple[str, dict[str, nn.Parameter]] | None:
    """`low_rank` with A and B, or `spectral` with U, s and V, of a projection that consists of these alone."""
    own = {id(parameter) for parameter in projection.parameters()}
    for kind, stated, names in (("low_rank", "factor_pairs", "AB"), ("spectral", "spectral_triples", "UsV")):
        groups: list[tuple[nn.Parameter, ...]] = getattr(projection, stated, list)()
        if len(groups) == 1 and own == {id(parameter) for parameter in groups[0]}:
            return kind, dict(zip(names, groups[0], strict=True))
    return None


def through_factors(x: Tensor, kind: str, parts: dict[str, nn.Parameter]) -> Tensor:
    """What factors compute of x (…, in)."""
    if kind == "low_rank":
        return x @ parts["B"] @ parts["A"].mT
    return (x @ parts["U"] * parts["s"]) @ parts["V"].mT


@torch.no_grad()
def check_computes(projection: Any, stated: Callable[[Tensor], Tensor], name: str = "") -> None:
    """Compares a projection, in evaluation, with what its weight or its factors say.

    Raises:
        ValueError: they compute different things of the same few vectors.
    """
    weight = next(projection.parameters(), torch.empty(0))
    if weight.is_meta:
        return
    x = torch.randn(4, projection.in_features, generator=torch.Generator().manual_seed(0)).to(weight)
    y, expected = projection(x), stated(x)
    largest = float((y - expected).abs().max())
    bound = max(SAME, 8 * torch.finfo(x.dtype).eps) * float(y.abs().max())
    if y.isfinite().all() and not largest <= bound:  # whoever writes weights names those that are no numbers
        kind = f"{type(projection).__module__}.{type(projection).__qualname__}"
        of = f"{kind} ({name})" if name else kind
        raise ValueError(f"{of} computes something else than its weight says: {largest:.1e} apart")


def _plain(module: Any) -> bool:
    """Whether a module has one dense weight and nothing else."""
    names = [name for name, _ in module.named_parameters()]
    return names == ["weight"] and module.weight.shape == (module.out_features, module.in_features)


def _product(kind: str, parts: dict[str, nn.Parameter]) -> tuple[Tensor, Tensor]:
    """L (out, k) and R (in, k) of a weight L Rᵀ, of factors."""
    if kind == "low_rank":
        return _at_least_float32(parts["A"].detach()), _at_least_float32(parts["B"].detach())
    u, s, v = (_at_least_float32(parts[name].detach()) for name in "UsV")
    return v * s, u


def _at_least_float32(weight: Tensor) -> Tensor:
    return weight if weight.dtype == torch.float64 else weight.float()


def _check_finite(weight: Tensor) -> None:
    if not weight.is_meta and not weight.isfinite().all():
        raise ValueError("its weight holds NaN or infinite numbers")
